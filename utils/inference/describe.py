"""What a model is, as plain values: for whoever may not build it himself because it is a stranger's program."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from utils.inference.load import open_model
from utils.models.findings import ExportError
from utils.models.summary import summarize


def describe(model: nn.Module, name: str = "") -> dict[str, Any]:
    """Task, limits, parts and size of a model, ready for JSON."""
    inner = getattr(model, "inner", model)  # the person's own module, where there is one
    facts = model.facts() if hasattr(model, "facts") else {}
    return {
        **facts,
        "class": type(inner).__name__,
        "task": getattr(model, "task", "causal"),
        "vocab_size": model.shape.vocab_size,
        "block_size": model.shape.block_size,
        "summary": summarize(inner, name).to_dict(),
    }


def write_description(kind: str, where: str, name: str, out: str) -> int:
    """Build the model `open_model` knows and write {"facts"} to `out`, or {"findings"} where it cannot be built."""
    try:
        told: dict[str, Any] = {"facts": describe(open_model(kind, where), name)}
    except ExportError as error:
        told = {"findings": [finding.to_dict() for finding in error.findings]}
    Path(out).write_text(json.dumps(told), encoding="utf-8")
    return 0
