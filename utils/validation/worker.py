"""The process that opens a model and puts the questions of the tiers to it; each answer is one line of JSON in a file.

Lines: {"findings": [...]} or {"error": text} where the model cannot be built, else {"facts": {...}}; {"begin": name,
"tier": n} before each check and {"check": {...}} after it; {"done": true} at the end. Whoever reads them decides what
a missing answer means: this process may hang, crash or be killed by the model at any line.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.inference.describe import describe
from utils.inference.load import open_model
from utils.models.findings import ExportError
from utils.validation.report import Report
from utils.validation.run import run_checks
from utils.validation.subject import locate


def main(kind: str, where: str, name: str, tiers: list[int], skip: list[str], out: str, seed: int) -> int:
    """Ask the model that `open_model` knows as `kind` and `where` all checks of `tiers` but `skip` ("tier/name")."""
    with Path(out).open("a", encoding="utf-8") as file:

        def tell(**row: Any) -> None:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()

        try:
            model = open_model(kind, where)
        except ExportError as error:
            tell(findings=[finding.to_dict() for finding in error.findings])
        except Exception as error:  # a stranger's code: whatever it raises is the finding
            tell(error=locate(error))
        else:
            tell(facts=describe(model, name))
            for tier in tiers:
                _ask(model, tier, skip, seed, tell)
        tell(done=True)
    return 0


def _ask(model: Any, tier: int, skip: list[str], seed: int, tell: Callable[..., None]) -> None:
    checks = importlib.import_module(f"utils.validation.tier{tier}").CHECKS
    names = [name for name in checks if f"{tier}/{name}" not in skip]
    sizes = {"vocab_size": model.shape.vocab_size, "block_size": model.shape.block_size}
    task = getattr(model, "task", "causal")
    for check in run_checks(
        model, checks, **sizes, task=task, seed=seed, only=names, started=lambda name: tell(begin=name, tier=tier)
    ):
        (plain,) = Report("", [replace(check, tier=tier)]).to_dict()["checks"]
        tell(check=plain)
