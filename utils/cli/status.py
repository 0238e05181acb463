"""`tbt status`: how one run stands, now or as it goes."""

from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Json, print_json


def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run; default: the one last active in runs/.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show the progress.")] = False,
    json: Json = False,
) -> None:
    """How one run stands. Exit code 1 if it failed."""
    from utils.jobs.describe import plain
    from utils.runs.folder import latest_run, open_run
    from utils.runs.progress import outcome, progress_line

    folder = latest_run() if run is None else open_run(run)
    if watch:
        from utils.cli.progress import follow
        from utils.jobs.launch import Job

        raise typer.Exit(follow(Job(folder)))
    state, said = folder.state(), folder.status()
    if json:
        print_json({"run": str(folder.path), **state, "status": said})
    else:
        print(f"run: {folder.path}")
        print(outcome(state, said))
        if said == "running":
            print(progress_line(state))
        if state.get("message"):
            print(f"error: {plain(str(state['message']))}")
        for alert in folder.events("alert")[-3:]:
            print(f"alert at step {alert.get('step')}: {plain(alert.get('text', ''))}")
    raise typer.Exit(1 if said == "failed" else 0)
