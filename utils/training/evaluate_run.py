"""One checkpoint on one side of its run's text; knows neither the run folder nor who asks.

For a model from elsewhere this runs its code: `main` is what a boxed process is asked for.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from utils.config.schema import RunConfig
from utils.data.batching.tasks import eval_on
from utils.data.storing.token_store import TokenStore, store_at
from utils.inference.generate import task_of
from utils.models.folder import load_model_folder
from utils.runtime.device import pick_device
from utils.training.evaluate import evaluate, what_it_takes


def evaluate_checkpoint(folder: Path, config: RunConfig, store: TokenStore, on: str) -> dict[str, Any]:
    """Measure the model in a checkpoint or model folder on the whole of side `on` (val or test) of `store`.

    In fp32 whatever the run was trained in, so that the numbers do not depend on the machine. Ready for JSON: task,
    loss (nats per label), accuracy, labels (how many), and, where they are known, bits_per_byte and entropy_floor, the
    least loss that any model can reach. Raises ValueError where there is nothing to predict.
    """
    device = pick_device()
    model, _ = load_model_folder(folder, device)
    task = task_of(model)
    batches = eval_on(
        store,
        config.data,
        on,
        config.train.batch_size,
        task,
        **what_it_takes(model),
    )
    found = evaluate(model, batches, device, nullcontext)
    assert found is not None, "nobody stops it"
    is_text = task == "causal" and store.kind == "text"
    return {
        "task": task,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "labels": found.tokens,
        "bits_per_byte": found.bits_per_byte(bytes_per_token(store, on)) if is_text else None,
        "entropy_floor": store.entropy_floor if is_text and on == "val" else None,
    }


def bytes_per_token(store: TokenStore, on: str) -> float:
    """UTF-8 bytes of a side's text per token."""
    return float(store.info["bytes"][on]) / len(store.side(on))


def main(folder: str, settings: dict[str, Any], store: str, on: str, out: str) -> int:
    """Write what `evaluate_checkpoint` says to `out` as JSON, or {"error": words} for what cannot be."""
    try:
        opened = store_at(Path(store))
        if opened is None:
            raise ValueError(f"{store} is no whole token store")
        told = evaluate_checkpoint(Path(folder), RunConfig.model_validate(settings), opened, on)
    except ValueError as error:
        told = {"error": str(error)}
    Path(out).write_text(json.dumps(told), encoding="utf-8")
    return 0
