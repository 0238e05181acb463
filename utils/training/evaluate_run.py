"""One checkpoint on one side of its run's text; knows neither the run folder nor who asks.

For a model from elsewhere this runs its code: `main` is what a boxed process is asked for.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils.config.schema import RunConfig
from utils.data.batching.tasks import eval_on
from utils.data.storing.token_store import TokenStore, store_at
from utils.inference.generate import task_of
from utils.models.folder import load_model_folder
from utils.runtime.device import pick_device
from utils.training.answers import SHOWN, Exam
from utils.training.evaluate import evaluate, what_it_takes

BATCH = 8  # examples at a time, where the run found out by itself how many fit
MOST_WRITTEN = 2_000  # characters of an answer, or of what goes with it, that are told


def evaluate_checkpoint(
    folder: Path, config: RunConfig, store: TokenStore, on: str, answers: int = 0
) -> dict[str, Any]:
    """Measure the model in a checkpoint or model folder on the whole of side `on` (val or test) of `store`.

    In fp32 whatever the run was trained in, so that the numbers do not depend on the machine. Ready for JSON: task,
    loss (nats per label), accuracy, labels (how many), and, where they are known or else None: top5, macro_f1,
    confusion (of texts, at most 50 classes), bits_per_byte and entropy_floor, the least loss that any model can reach.
    With `answers` questions asked also bleu, chrf and written, three answers with prompt and reference.

    Raises ValueError where there is nothing to predict, or nothing to ask.
    """
    device = pick_device()
    model, _ = load_model_folder(folder, device)
    task = task_of(model)
    batches = eval_on(
        store,
        config.data,
        on,
        config.train.batch_size or BATCH,
        task,
        **what_it_takes(model),
    )
    exam = Exam(store, config.data, task, on, batches, answers) if answers else None
    found = evaluate(model, batches, device, nullcontext)
    assert found is not None, "nobody stops it"
    told = exam.take(model) if exam else None
    is_text = task == "causal" and store.kind == "text"
    return {
        "task": task,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "top5": found.top5,
        "macro_f1": found.macro_f1,
        "confusion": found.confusion or None,
        "labels": found.tokens,
        "bits_per_byte": found.bits_per_byte(bytes_per_token(store, on)) if is_text else None,
        "entropy_floor": store.entropy_floor if is_text and on == "val" else None,
        "bleu": told and told.bleu,
        "chrf": told and told.chrf,
        "written": [_cut(asdict(each)) for each in told.written[:SHOWN]] if told else [],
    }


def _cut(written: dict[str, str]) -> dict[str, str]:
    return {name: text[:MOST_WRITTEN] for name, text in written.items()}


def bytes_per_token(store: TokenStore, on: str) -> float:
    """UTF-8 bytes of a side's text per token."""
    return float(store.info["bytes"][on]) / len(store.side(on))


def main(folder: str, settings: dict[str, Any], store: str, on: str, answers: int, out: str) -> int:
    """Write what `evaluate_checkpoint` says to `out` as JSON, or {"error": words} for what cannot be."""
    try:
        opened = store_at(Path(store))
        if opened is None:
            raise ValueError(f"{store} is no whole token store")
        told = evaluate_checkpoint(Path(folder), RunConfig.model_validate(settings), opened, on, answers)
    except ValueError as error:
        told = {"error": str(error)}
    Path(out).write_text(json.dumps(told), encoding="utf-8")
    return 0
