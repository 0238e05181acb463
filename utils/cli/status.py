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
    from utils.runs.progress import ALERTS, alerts, outcome, progress_line, split, split_line

    folder = latest_run() if run is None else open_run(run)
    if watch:
        from utils.cli.progress import follow
        from utils.jobs.launch import Job

        raise typer.Exit(follow(Job(folder)))
    state, said = folder.state(), folder.status()
    if json:
        flat = {key: value for key, value in state.items() if not key.startswith("share/")}
        known = [plain(text) for text in alerts(folder.events(*ALERTS))]
        print_json({"run": str(folder.path), **flat, "status": said, "split": split(state), "alerts": known})
    else:
        print(f"run: {folder.path}")
        print(outcome(state, said))
        if said == "running":
            print(progress_line(state))
        if words := split_line(state):
            print(f"time: {words}")
        if state.get("message"):
            print(f"error: {plain(str(state['message']))}")
        for text in alerts(folder.events(*ALERTS)):
            print(f"alert at {plain(text)}")
    raise typer.Exit(1 if said == "failed" else 0)
