"""`tbt validate`: is this model sound?"""

from typing import Annotated

import typer

from utils.cli.options import Json, print_json


def validate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A preset, a run, a checkpoint or a model folder.")
    ] = "quickstart",
    json: Json = False,
) -> None:
    """Check a model (tier 1). Exit code 1 if it is not sound."""
    from utils.inference.load import open_model
    from utils.validation.tier1 import run_tier1

    net, _ = open_model(model)
    report = run_tier1(net, net.shape.vocab_size, net.shape.block_size)
    if json:
        print_json(report.to_dict())
    else:
        print(report)
    raise typer.Exit(0 if report.passed else 1)
