"""`tbt evaluate`: how good a run's model is on text it has not learned."""

from pathlib import Path
from typing import Annotated, Any

import typer

from utils.cli.options import Json, Trust, print_json


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run; default: the one last active in runs/.")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="val: the validation text; test: what was kept for the very end.")
    ] = "val",
    checkpoint: Annotated[str, typer.Option(help="Which of the run's checkpoints: best, latest or a step.")] = "best",
    trust_sha256: Trust = "",
    json: Json = False,
) -> None:
    """Loss, perplexity and accuracy on all of a run's validation or test text."""
    from utils.jobs.evaluate import evaluate_run
    from utils.runs.folder import latest_run

    found = evaluate_run(run or latest_run().path, on, checkpoint, trust_sha256)
    if json:
        print_json(found)
    else:
        print("\n".join(lines(found)))


def lines(found: dict[str, Any]) -> list[str]:
    """The same for a person."""
    is_class = found["task"] == "classification"
    what = "text" if is_class else "token"
    side = {"val": "validation", "test": "test"}[found["on"]]
    rows = [
        ("loss", f"{found['loss']:.4f} nats per {what}"),
        ("perplexity", "" if is_class else f"{found['perplexity']:.4g}"),
        ("accuracy", f"{found['accuracy']:.1%} of {found['labels']:,} {what}s"),
        ("bits per byte", "" if found["bits_per_byte"] is None else f"{found['bits_per_byte']:.4f}"),
        ("best possible loss", "" if found["entropy_floor"] is None else f"{found['entropy_floor']:.4f}"),
    ]
    head = f"run: {found['run']}, step {found['step']:,}, {side} text"
    return [head, *(f"{name:<20}{value}" for name, value in rows if value)]
