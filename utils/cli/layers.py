"""`tbt layers`: what training does to each layer of a run."""

from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Json, print_json


def layers(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run; default: the one last active in runs/.")
    ] = None,
    json: Json = False,
) -> None:
    """Gradients, weights and how far they move, for each layer at the last step looked at (train.stats_every).

    With --json: all steps.
    """
    from utils.jobs.describe import plain
    from utils.runs.folder import latest_run, open_run
    from utils.runs.layers import layer_table

    folder = latest_run() if run is None else open_run(run)
    rows = folder.layers()
    if json:
        print_json({"run": str(folder.path), "layers": rows})
    else:
        print(f"run: {folder.path}")
        print(plain(str(layer_table(rows))))
