"""`tbt validate`: is this model sound, how does it behave, can it learn?"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Json, Model, Revision, Trust, print_json


def validate(
    model: Model = "quickstart",
    tier: Annotated[
        str, typer.Option("--tier", help="Which tiers, such as 1,2,3: sound? (a minute) behaves? learns? (minutes)")
    ] = "1",
    revision: Revision = "",
    trust_sha256: Trust = "",
    check_seconds: Annotated[
        float, typer.Option("--check-seconds", min=0.0, help="Give a check up after this long; 0 = 2 to 5 minutes.")
    ] = 0.0,
    save: Annotated[Path | None, typer.Option("--save", help="Also write the report as one HTML page.")] = None,
    json: Json = False,
) -> None:
    """Check a model; a stranger's code runs behind walls. Exit code 1 if it is not sound.

    MODEL is a preset, a run, a checkpoint, a model folder; an export of Transformer Builder as gist id or URL, folder
    or zip; or a transformers model as owner/name or folder.
    """
    from utils.jobs.find_model import find_model
    from utils.jobs.validate import title, unreadable
    from utils.jobs.validate import validate as ask
    from utils.models.findings import ExportError
    from utils.validation.report import Report

    wanted = tiers(tier)
    if save is not None and not os.access(save.parent, os.W_OK):
        raise ValueError(f"--save {save}: the folder {save.parent} is not there or cannot be written")
    progress = Progress()
    try:
        found = find_model(model, revision)
    except ExportError as error:
        checks = unreadable(error)
    else:
        checks = []
        for check in ask(found, wanted, trust_sha256, seconds=check_seconds, started=progress.begin):
            checks.append(check)
    progress.end()
    report = Report(title(model, wanted), checks)
    if json:
        print_json(report.to_dict())
    else:
        print(report)
    if save is not None:
        report.save(save)
        print(f"page: {save}", file=sys.stderr)
    raise typer.Exit(0 if report.passed else 1)


class Progress:
    """What is being asked, on one line of a terminal that changes; nothing in a pipe."""

    def __init__(self) -> None:
        self.asked = 0

    def begin(self, name: str) -> None:
        """Show the name of the check that begins."""
        self.asked += 1
        self._line(f"{self.asked}. {name} ...")

    def end(self) -> None:
        """Leave the line empty."""
        self._line("")

    def _line(self, words: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)


def tiers(text: str) -> list[int]:
    """The numbers in "1,2,3". Raises ValueError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word in ("1", "2", "3") for word in words):
        raise ValueError(f"--tier {text}: give some of 1, 2 and 3, such as --tier 1,2")
    return sorted({int(word) for word in words})
