"""How good a run's model is, asked in this process, or, if building it runs a stranger's model.py, in a boxed one."""

import json
import math
import os
from pathlib import Path
from typing import Any

from utils.config.schema import BUILT_IN, RunConfig
from utils.data.storing.run_store import remembered_store
from utils.data.storing.token_store import TokenStore, open_store
from utils.jobs.box import Limits
from utils.jobs.describe import TASKS, WORDS, last_words, plain, start_for
from utils.jobs.find_model import FoundModel
from utils.models.source_files import SOURCE
from utils.runs.checkpoints import find_checkpoint
from utils.runs.folder import RunFolder, open_run
from utils.runs.model_folder import CONFIG_FILE, MOST, kind_of
from utils.runtime.files import cache_dir, read_regular, scratch_folder

WEIGHTS_FILE = "model.safetensors"
MOST_TOLD = 1_000_000  # bytes
MOST_LOSS = 100.0  # nats whose perplexity is still worth a number
NUMBERS = ("loss", "accuracy", "labels")
PERHAPS = ("top5", "macro_f1", "bits_per_byte", "entropy_floor", "bleu", "chrf")  # or None
ANSWER = ("prompt", "answer", "reference")


def evaluate_run(
    path: Path, on: str = "val", checkpoint: str = "best", trust_sha256: str = "", answers: int = 0
) -> dict[str, Any]:
    """Measure a checkpoint (best, latest or a step) of the run at `path` on its validation or test text.

    Ready for JSON: run, step, on, task; loss in nats per label, perplexity, accuracy, labels (how many were predicted:
    tokens, or the classes of texts). Where they are known, else None: top5 (share of labels among the first five
    guesses), bits_per_byte, entropy_floor (the least loss possible); of a classifier macro_f1, confusion ([i][j]: texts
    of class i taken for j) and classes. With `answers` questions asked: bleu, chrf, and written, three answers.

    Raises FileNotFoundError where there is no such run, checkpoint or text, ValueError for a side without text or code
    that may not run here, RuntimeError where a boxed process ended early.
    """
    if on not in ("val", "test"):
        raise ValueError(f"--on {on}: a model is evaluated on val (validation) or test")
    if answers < 0:
        raise ValueError(f"--answers {answers}: say how many answers to write, or 0 for none")
    run = open_run(path)
    config, folder = run.config(), find_checkpoint(run.checkpoints, checkpoint)
    store = store_of(run, config)
    if not len(store.side(on)):
        raise ValueError(
            f"{run.path} keeps no {on} documents: train a run with data.test_fraction=0.05 (a share of its documents) "
            "or data.test_from=SPLIT_OR_PATH"
        )
    told = _here(folder, config, store, on, answers) if kind_of(folder) in BUILT_IN else None
    if told is None:
        told = _boxed(FoundModel(str(path), "folder", str(folder)), config, store, on, answers, trust_sha256)
    perplexity = math.exp(min(told["loss"], MOST_LOSS))
    return {
        "run": str(run.path),
        "step": int(folder.name[5:]),
        "on": on,
        **told,
        "perplexity": perplexity,
        "classes": store.labels,
    }


def store_of(run: RunFolder, config: RunConfig) -> TokenStore:
    """What the run learned from.

    The run's folder was perhaps written by a stranger's code. So it opens no folder to it but those of our own cache,
    and no function it names is run.
    """
    store = remembered_store(run, below=cache_dir() / "tokens")
    if store is not None:
        return store
    if config.data.hook:
        raise ValueError(
            f"the text of {run.path} is not prepared on this machine, and its documents pass through data.hook="
            f"{config.data.hook}: if that function is yours, `tbt data prepare --config {run.path / 'config.yaml'}` "
            "prepares it"
        )
    store = open_store(config.data, None if config.model.kind in BUILT_IN else run.path / SOURCE)
    run.check_data(store.fingerprint)
    return store


def _here(folder: Path, config: RunConfig, store: TokenStore, on: str, answers: int) -> dict[str, Any]:
    """In this process, out of a folder that has no room for code: what is built is what was looked at."""
    from utils.training.evaluate_run import evaluate_checkpoint

    with scratch_folder("evaluate") as pinned:
        (pinned / CONFIG_FILE).write_bytes(read_regular(folder / CONFIG_FILE, MOST))
        (pinned / WEIGHTS_FILE).symlink_to((folder / WEIGHTS_FILE).resolve())
        if kind_of(pinned) not in BUILT_IN:
            raise ValueError(f"{folder / CONFIG_FILE} changed while it was read: evaluate it again")
        return evaluate_checkpoint(pinned, config, store, on, answers)


def _boxed(
    found: FoundModel, config: RunConfig, store: TokenStore, on: str, answers: int, trust_sha256: str
) -> dict[str, Any]:
    with scratch_folder("evaluate") as folder:
        out = folder / "told.json"
        arguments = {
            "folder": found.place,
            "settings": config.model_dump(mode="json"),
            "store": str(store.folder.resolve()),
            "on": on,
            "answers": answers,
            "out": str(out),
        }
        with (folder / "log.txt").open("w+b") as log:
            with start_for(
                found,
                trust_sha256,
                "utils.training.evaluate_run:main",
                arguments,
                read=[*found.read, store.folder.resolve()],
                write=[folder],
                limits=Limits(memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
                stdout=log,
                stderr=log,
            ) as box:
                ending = box.wait()
            if ending.code:
                raise RuntimeError(f"{found.name} could not be evaluated: {last_words(log) or ending.words}")
            try:
                told = json.loads(read_regular(out, MOST_TOLD))
                error = told.get("error")
                clean = {} if error else _clean(told)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
                raise RuntimeError(f"{found.name} gave no result that can be read: {plain(str(problem))}") from None
    if error:
        raise ValueError(plain(str(error)[:WORDS]))
    return clean


def _clean(told: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate_checkpoint` tells, read as if a stranger had written it.

    Raises KeyError, TypeError or ValueError where something is missing or is of another kind.
    """
    if told["task"] not in TASKS:
        raise ValueError("an unknown task")
    numbers = {name: told[name] for name in (*NUMBERS, *PERHAPS)}
    for name, value in numbers.items():
        if (value is not None or name not in PERHAPS) and not _is_number(value):
            raise TypeError(f"{name} is no number")
    confusion, written = told["confusion"], told["written"]
    if confusion is not None and not all(len(row) == len(confusion) and all(map(_is_number, row)) for row in confusion):
        raise TypeError("confusion is no square table of numbers")
    if not all(isinstance(each[part], str) for each in written for part in ANSWER):
        raise TypeError("an answer is no text")
    shown = [{part: plain(each[part][:WORDS]) for part in ANSWER} for each in written]
    return {"task": told["task"], **numbers, "confusion": confusion, "written": shown}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
