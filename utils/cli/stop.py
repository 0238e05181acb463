"""`tbt stop`: have a run save and end, wherever it was started."""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

PATIENCE = 60.0  # seconds: a step of a large model may take that long


def stop(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run that is being trained.")],
) -> None:
    """Stop a run: it finishes its step, saves a checkpoint and ends. `tbt resume RUN` goes on with it.

    A run that is not being trained is left as it is.
    """
    from utils.jobs.launch import Job
    from utils.runs.folder import open_run
    from utils.runs.progress import outcome

    job = Job(open_run(run))
    if job.alive():
        job.send(signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while job.alive():
        if time.monotonic() > until:
            raise RuntimeError(f"{run} was told to stop and still runs after {PATIENCE:.0f} s: `tbt status {run}`")
        time.sleep(0.05)
    print(outcome(job.run.state(), job.run.status()))
