"""`tbt evaluate`: how good a run's model is on text it has not learned."""

from pathlib import Path
from typing import Annotated, Any

import typer

from utils.cli.options import Json, Trust, print_json

MISTAKES = 5  # kinds of mistake of a classifier that are named


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run; default: the one last active in runs/.")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="val: the validation text; test: what was kept for the very end.")
    ] = "val",
    checkpoint: Annotated[str, typer.Option(help="Which of the run's checkpoints: best, latest or a step.")] = "best",
    answers: Annotated[
        int,
        typer.Option(
            help="Also let the model answer this many questions, scored with BLEU and chrF (needs sacrebleu)."
        ),
    ] = 0,
    trust_sha256: Trust = "",
    json: Json = False,
) -> None:
    """Loss, perplexity and accuracy on all of a run's validation or test text."""
    from utils.jobs.evaluate import evaluate_run
    from utils.runs.folder import latest_run

    found = evaluate_run(run or latest_run().path, on, checkpoint, trust_sha256, answers)
    if json:
        print_json(found)
    else:
        print("\n".join(lines(found)))


def lines(found: dict[str, Any]) -> list[str]:
    """The same for a person."""
    from utils.jobs.describe import plain

    is_class = found["task"] == "classification"
    what = "text" if is_class else "token"
    side = {"val": "validation", "test": "test"}[found["on"]]
    perplexity = "pseudo-perplexity" if found["task"] == "masked" else "perplexity"
    rows = [
        ("loss", f"{found['loss']:.4f} nats per {what}"),
        (perplexity, "" if is_class else f"{found['perplexity']:.4g}"),
        ("accuracy", f"{found['accuracy']:.1%} of {found['labels']:,} {what}s"),
        ("top-5 accuracy", _or_nothing(found["top5"], ".1%")),
        ("macro F1", _or_nothing(found["macro_f1"], ".3f")),
        ("bits per byte", _or_nothing(found["bits_per_byte"], ".4f")),
        ("best possible loss", _or_nothing(found["entropy_floor"], ".4f")),
        ("BLEU", _or_nothing(found["bleu"], ".2f")),
        ("chrF", _or_nothing(found["chrf"], ".2f")),
    ]
    head = f"run: {found['run']}, step {found['step']:,}, {side} text"
    table = [head, *(f"{name:<20}{value}" for name, value in rows if value)]
    for each in found["written"]:
        table += ["", *(f"{name:<20}{' '.join(each[name].split())}" for name in ("prompt", "answer", "reference"))]
    # What a model writes may be anything, and so may the names of classes: no control of them reaches the terminal.
    return [plain(line) for line in (*table, *_mistakes(found))]


def _mistakes(found: dict[str, Any]) -> list[str]:
    """What a classifier most often took for what."""
    counts, names = found["confusion"] or [], found["classes"]
    wrong = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    most = sorted(wrong, key=lambda each: (-each[0], each[1:]))[:MISTAKES]
    named = [(n, *(names[k] if k < len(names) else f"output {k}" for k in pair)) for n, *pair in most]
    return ["", *(f"{n:,} of class {right} taken for {guess}" for n, right, guess in named)] if named else []


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
