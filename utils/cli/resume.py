"""`tbt resume`: go on with a run from its folder alone, and further than was planned."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from utils.cli.data import interruptible
from utils.cli.options import Overrides


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, wherever it lies now.")],
    overrides: Overrides = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best or a step; later checkpoints are given up.")
    ] = "latest",
    more_steps: Annotated[int, typer.Option("--more-steps", help="End so many optimizer steps later.")] = 0,
    more_epochs: Annotated[float, typer.Option("--more-epochs", help="End so many passes over the text later.")] = 0.0,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", metavar="KEY", help="Let this setting change though it changes what is learned."),
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Go on and leave; `tbt status --watch` shows it.")
    ] = False,
) -> None:
    """Go on with a run: from its newest checkpoint that is whole, with the settings it has.

    What is only shown, looked at or kept may change freely (train.eval_every=50); what changes the weights wants
    --accept KEY; another model, text or seed is another run. A run that was moved here from another machine goes on,
    too, and says at which level: exact or continuous. Examples:

    tbt resume runs/book --more-steps 500
    tbt resume runs/book --checkpoint best train.learning_rate=1e-3 --accept train.learning_rate
    """
    from utils.cli.prepare_bar import prepare_bar
    from utils.cli.progress import follow
    from utils.cli.train import pass_signals_on
    from utils.jobs.launch import launch
    from utils.jobs.resume import apply, plan
    from utils.runs.folder import open_run

    folder = open_run(run)
    wanted = plan(folder, overrides or (), more_steps, more_epochs, accept or (), checkpoint)
    if wanted.changed or wanted.rewinds:
        apply(folder, wanted)
    for words in (*wanted.changed, *wanted.notes):
        print(words, file=sys.stderr)
    with interruptible(), prepare_bar() as progress:
        job = launch(wanted.config, background, progress)
    if background and job.started():
        print(f"run: {job.run.path}")
        return
    pass_signals_on(job)
    sys.exit(follow(job))
