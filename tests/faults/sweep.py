"""Break a short run at every place, go on, and compare with the one nobody broke; knows no test and no table."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config.load import dump_config, load_config
from utils.runs.checkpoints import best_checkpoint
from utils.runs.folder import RunFolder
from utils.tests.tiny import TINY, metrics_of, samples_of, weights_hash

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODES = {"count": 0, "killed before": 1, "killed after": 2, "torn": 3, "failing": 4, "short": 5}  # as in inject.c
ERRORS = {name: getattr(errno, name) for name in ("EIO", "ENOSPC", "EDQUOT", "ENOTCONN", "EROFS")}
# With dropout, accumulation, an average of weights, samples and a best checkpoint.
RUN = (*TINY, "train.max_steps=20", "train.save_every=5", "train.ema_decay=0.9")


class Zygote:
    """Trains in forks of one process, with the injector in it."""

    def __init__(self, place: Path) -> None:
        """Raises FileNotFoundError where there is no C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("no C compiler (cc): the injector cannot be built")
        library = place / "inject.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", HERE / "inject.c", "-o", library, "-ldl"], check=True)
        settings = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"], cwd=ROOT, env=settings, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def attempt(
        self, run: Path, words: Iterable[str] = RUN, arm: tuple[int, int, int, bool] | None = None,
        kill_after: float | None = None, signal: int = 9,
    ) -> dict[str, Any]:  # fmt: skip
        """One training of `run`: see `zygote.py`."""
        config = load_config("debug", overrides=[*words, f"run_dir={run}"])
        order = {"config": dump_config(config), "arm": arm and [*arm], "kill_after": kill_after, "signal": signal}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def what_it_came_to(run: Path) -> tuple[Any, ...]:
    """All that has to be the same, to the last bit."""
    best = best_checkpoint(run / "checkpoints")
    return weights_hash(run), metrics_of(run), samples_of(run), best and best.name, RunFolder(run).status()


@dataclass
class Row:
    """One line of the table."""

    fault: str
    injected: int = 0
    went_on: int = 0  # the attempt that met the fault came to its end by itself
    survived: int = 0  # the run came to the same end, at once or when it was gone on with
    lost: list[str] = field(default_factory=list)  # what happened to the others


def break_at(zygote: Zygote, place: Path, fault: str, arm: tuple[int, int, bool], calls: Iterable[int],
             same: tuple[Any, ...]) -> Row:  # fmt: skip
    """Break a run at each of these file calls; `arm`: mode, errno, whether it lasts."""
    row, run = Row(fault), place / "run"
    for k in calls:
        shutil.rmtree(run, ignore_errors=True)
        met = zygote.attempt(run, arm=(k, *arm))
        row.injected += 1
        row.went_on += met["code"] == 0
        end = met if met["code"] == 0 else zygote.attempt(run)
        if end["code"] != 0:
            row.lost.append(f"call {k}: it did not go on: {end['said'][-300:]}")
        elif what_it_came_to(run) != same:
            row.lost.append(f"call {k}: another end")
        else:
            row.survived += 1
    return row
