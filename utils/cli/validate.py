"""`tbt validate`: is this model sound, how does it behave, can it learn?"""

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
    import sys

    from utils.jobs.find_model import find_model
    from utils.jobs.validate import title
    from utils.jobs.validate import validate as ask
    from utils.validation.report import Report

    found, checks = find_model(model, revision), []
    for check in ask(found, tiers(tier), trust_sha256, seconds=check_seconds):
        checks.append(check)
        if sys.stderr.isatty():
            print(f"\r\x1b[K{len(checks)} checks, last: {check.name} ({check.status})", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    report = Report(title(found), checks)
    if save is not None:
        report.save(save)
    if json:
        print_json(report.to_dict())
    else:
        print(report)
        if save is not None:
            print(f"page: {save}")
    raise typer.Exit(0 if report.passed else 1)


def tiers(text: str) -> list[int]:
    """The numbers in "1,2,3". Raises ValueError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word in ("1", "2", "3") for word in words):
        raise ValueError(f"--tier {text}: give some of 1, 2 and 3, such as --tier 1,2")
    return sorted({int(word) for word in words})
