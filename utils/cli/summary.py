"""`tbt summary`: the parts of a model and what it costs."""

from utils.cli.options import Json, Model, Revision, Trust, print_json


def summary(model: Model = "quickstart", revision: Revision = "", trust_sha256: Trust = "", json: Json = False) -> None:
    """A model's parts, parameters, memory and work per token."""
    from utils.jobs.describe import describe_model
    from utils.jobs.find_model import find_model
    from utils.models.summary import summary_from

    found = describe_model(find_model(model, revision), trust_sha256)["summary"]
    if json:
        print_json(found)
    else:
        print(summary_from(found))
