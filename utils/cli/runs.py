"""`tbt runs`: every run in a folder."""

from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Json, print_json


def runs(
    root: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs, the most recently active first."""
    from utils.runs.folder import list_runs
    from utils.runs.overview import overview

    found = list_runs(root)
    if json:
        print_json([{"run": str(run.path), **run.state(), "status": run.status()} for run in found])
    elif found:
        print(overview(found))
    else:
        print(f"no runs in {root}/ yet: `tbt train` makes one")
