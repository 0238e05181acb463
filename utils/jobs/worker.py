"""The process that trains: `python -m utils.jobs.worker RUN_FOLDER`. It writes the folder, and nothing else.

Started so, without walls, it trains what this package builds itself; a model from elsewhere comes through `box.py`.

Exit codes: 0 done, 1 failed, 2 the request was wrong, 75 another process has the run, 128 + n signal n.
"""

import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from utils.config.schema import BUILT_IN
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.runtime.process import identity
from utils.training.interrupt import StopSignal

if TYPE_CHECKING:
    from utils.training.trainer import TrainResult

BUSY = 75  # EX_TEMPFAIL


def main(folder: str, where: str = ".", boxed: bool = True) -> int:
    """Train the run whose config.yaml lies in `folder`; what goes wrong is in state.json and ends stderr.

    Paths in the settings are seen from the folder `where`. `boxed`: whether walls stand, or somebody consented.
    """
    os.chdir(where)
    run, lock = RunFolder(folder), RunLock(RunFolder(folder).path)
    if not lock.acquire():
        print(f"error: {run.path} is being written by another process", file=sys.stderr)
        return BUSY
    with lock, StopSignal() as stop:
        # Before torch is imported, which takes seconds: who looks sees a run that is alive, and whom to signal.
        with suppress(OSError):  # a full disk ends no run; where nothing at all can be written, training says so
            run.write_json("state", {**run.state(), "status": "queued", "process": identity(), "message": None})
        try:
            result = _train(run, stop, lock, boxed)
        except Exception as error:  # the process's edge: the launcher sees only the code, the state and the log
            traceback.print_exc()
            words = str(error) or type(error).__name__  # a MemoryError says nothing more
            print(f"error: {words}", file=sys.stderr, flush=True)
            with suppress(OSError):
                run.write_json("state", {**run.state(), "status": "failed", "message": words})
            return 2 if isinstance(error, ValueError | FileNotFoundError) else 1
    return 0 if result.signal is None else 128 + result.signal


def _train(run: RunFolder, stop: StopSignal, lock: RunLock, boxed: bool) -> "TrainResult":
    config = run.config()  # read once: a boxed process that still lives could change it
    if not boxed and config.model.kind not in BUILT_IN:
        raise ValueError(f"model.kind={config.model.kind} is not trained without walls: start it with `tbt train`")
    from utils.training.run import run_training

    return run_training(config.model_copy(update={"run_dir": str(run.path)}), stop, lock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], boxed=False))
