"""Ask which learning rate suits a run, in a process of its own and a folder that goes away; no run is changed."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from utils.config.schema import RunConfig
from utils.data.storing.run_store import remember_store
from utils.data.storing.token_store import Progress, TokenStore, open_store
from utils.jobs.box import Limits
from utils.jobs.describe import start_for
from utils.jobs.launch import POLL, ROOT, Job, in_run
from utils.jobs.prepare import Prepared, place, prepare
from utils.runs.folder import RunFolder
from utils.runtime.environment import without_secrets
from utils.runtime.files import read_regular, scratch_folder
from utils.training.rate_curve import HIGHEST, LOWEST, STEPS, RateCurve, rising_rates

ROWS = "rates.jsonl"
MOST = 4_000_000  # bytes of rows: a stranger's code may have written them


def find_rate(
    config: RunConfig,
    steps: int = STEPS,
    low: float = LOWEST,
    high: float = HIGHEST,
    progress: Progress | None = None,
) -> RateCurve:
    """The loss of `config`'s own model, data and optimizer while the rate rises from `low` to `high` over `steps`.

    A model from elsewhere is walled off as in training. `progress` hears how far the data are, and then the steps. The
    same settings give the same curve. Raises ValueError or FileNotFoundError for a request that cannot be met,
    RuntimeError where the process failed.
    """
    rates = rising_rates(steps, low, high)
    train = config.train.model_copy(update={"batch_warmup_steps": 0})  # every step takes the whole batch
    with scratch_folder("rate") as folder:
        run = RunFolder(folder / "run")
        prepared = prepare(config.model_copy(update={"train": train, "run_dir": str(run.path)}))
        store = open_store(prepared.config.data, prepared.own_tokenizer, progress)
        prepared.check_tokenizer(store.tokenizer)
        run.create(prepared.config)
        place(prepared)
        remember_store(run, store)
        job, out = _start(run, prepared, store, steps, low, high), run.path / ROWS
        try:
            while job.alive():
                time.sleep(POLL)
                if progress:
                    progress("finding the learning rate", len(_rows(out)), steps)
            code, words = job.result()
        finally:
            _end(job)
        if code:
            raise (ValueError if code == 2 else RuntimeError)(words or f"the process that trained ended with {code}")
        return _curve(_rows(out), rates)


def _start(run: RunFolder, prepared: Prepared, store: TokenStore, steps: int, low: float, high: float) -> Job:
    arguments = {
        "folder": str(run.path.resolve()), "where": os.getcwd(), "steps": steps, "low": low, "high": high,
        "out": str(run.path.resolve() / ROWS),
    }  # fmt: skip
    with run.log.open("ab") as log:
        if prepared.found is not None:
            box = start_for(
                in_run(run, prepared.found),
                prepared.config.model.trust_sha256,
                "utils.training.find_rate:main",
                arguments,
                read=[store.folder],
                write=[run.path],
                limits=Limits(memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
                stdout=log,
                stderr=log,
            )
            return Job(run, box.process, box=box)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "utils.training.find_rate", *map(str, arguments.values())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**without_secrets(), "PYTHONPATH": os.pathsep.join(paths)},
        )
    return Job(run, child)


def _end(job: Job) -> None:
    """Nothing goes on training once nobody waits for it."""
    if job.box is not None:
        job.box.close()
    elif job.child is not None:
        job.child.kill()
        job.child.wait()


def _rows(out: Path) -> list[dict[str, Any]]:
    try:
        lines = read_regular(out, MOST).split(b"\n")[:-1]  # what follows the last line feed is not whole
        return [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        return []


def _curve(rows: list[dict[str, Any]], rates: list[float]) -> RateCurve:
    """The rows, read as if a stranger had written them: their losses, one for each of `rates` from the first on."""
    losses: list[float] = []
    for row in rows[: len(rates)]:
        loss = row.get("loss") if isinstance(row, dict) else None
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss < math.inf:
            break  # null is how a loss that is not finite is written: nothing is learned from there on
        losses.append(float(loss))
    if not losses:
        raise RuntimeError("the loss was not finite from the first step on: `tbt validate` says what is wrong")
    return RateCurve(tuple(rates[: len(losses)]), tuple(losses), stopped=len(losses) < len(rates))
