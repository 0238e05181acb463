"""`tbt train`: start a worker, or go on with an interrupted run, and show how it goes."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utils.cli.data import interruptible
from utils.cli.options import ConfigFile, ModelName, Overrides, Preset, Revision, Trust, read_config

if TYPE_CHECKING:
    from utils.jobs.launch import Job


def train(
    overrides: Overrides = None,
    preset: Preset = None,
    config: ConfigFile = None,
    model: ModelName = "",
    revision: Revision = "",
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Start the run and leave; `tbt status --watch` shows it.")
    ] = False,
    inline: Annotated[bool, typer.Option("--inline", help="Train in this process, for a debugger.")] = False,
    trust_sha256: Trust = "",
) -> None:
    """Train a model. The same command again goes on with a run that was interrupted.

    Ctrl-C saves a checkpoint and stops (exit code 130). Example:

    tbt train --preset quickstart data.source=text data.path=book.txt train.max_steps=300 --run-dir runs/book
    tbt train --model tests/exports/moe train.max_steps=20 --run-dir runs/moe
    """
    settings = read_config(preset, config, overrides, model, revision, run_dir)
    if run_dir is not None:
        settings = settings.model_copy(update={"run_dir": str(run_dir)})
    if trust_sha256:
        trusting = settings.model.model_copy(update={"trust_sha256": trust_sha256})
        settings = settings.model_copy(update={"model": trusting})
    if inline:
        from utils.cli.progress import print_ending
        from utils.jobs.launch import prepare_inline
        from utils.runs.folder import RunFolder
        from utils.training.interrupt import StopSignal
        from utils.training.run import run_training

        with StopSignal() as stop:
            result = run_training(prepare_inline(settings), stop)
        print_ending(RunFolder(settings.run_dir))
        sys.exit(0 if result.signal is None else 128 + result.signal)

    from utils.cli.prepare_bar import prepare_bar
    from utils.cli.progress import follow
    from utils.jobs.launch import launch

    if settings.model.ref and sys.stderr.isatty():
        print(f"looking at {settings.model.ref} ...", file=sys.stderr, flush=True)
    with interruptible(), prepare_bar() as progress:
        job = launch(settings, background, progress)
    for note in job.notes:
        print(note, file=sys.stderr)
    if background and job.started():
        print(f"run: {job.run.path}")
        return
    pass_signals_on(job)
    sys.exit(follow(job))


def pass_signals_on(job: "Job") -> None:
    """Let INT, TERM and HUP reach the worker, which saves and leaves; what is ignored (nohup) stays ignored."""

    def handle(number: int, frame: object) -> None:
        print("stopping after this step ...", file=sys.stderr)
        job.send(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
