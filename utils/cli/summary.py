"""`tbt summary`: the parts of a model and what it costs."""

from typing import Annotated

import typer

from utils.cli.options import Json, print_json


def summary(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A preset, a run, a checkpoint or a model folder.")
    ] = "quickstart",
    json: Json = False,
) -> None:
    """A model's parts, parameters, memory and work per token."""
    from utils.inference.load import open_model
    from utils.models.summary import summarize

    net, name = open_model(model)
    found = summarize(net, name)
    if json:
        print_json(found.to_dict())
    else:
        print(found)
