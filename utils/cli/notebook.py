"""`tbt notebook`: run a notebook in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Run a notebook in the terminal, as Run All would.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Run a notebook in the terminal, as Run All would."""


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help="The .ipynb file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the executed notebook; default: the run it made.")
    ] = None,
) -> None:
    """Execute every cell in order, showing each cell's output as it comes; leaves the executed notebook and a page."""
    from utils.jobs.notebook_run import run_notebook

    raise typer.Exit(run_notebook(notebook, out))
