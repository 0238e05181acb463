"""Choosing a model and asking about it, from notebook cells. A stranger's code runs in a boxed process, never here."""

import html
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IPython.display import display

from utils.config.schema import BUILT_IN, RunConfig
from utils.jobs.describe import describe_model
from utils.jobs.find_model import FoundModel, find_model
from utils.jobs.prepare import prepare
from utils.jobs.validate import title
from utils.jobs.validate import validate as ask
from utils.models.inspect_code import inspect_code
from utils.models.summary import ModelSummary, summary_from
from utils.notebook.display import Shown, Text
from utils.notebook.train import Nowhere
from utils.runtime.files import write_atomic
from utils.runtime.table import Table
from utils.validation.report import Check, Report

REMEMBERED = Path("runs/model.json")  # what template.ipynb looked at last: training.ipynb beside it begins with that


@dataclass(frozen=True)
class ChosenModel:
    """A model that was found, not yet opened; shows where it came from and what can be read from its code."""

    found: FoundModel
    trust_sha256: str = ""

    def summary(self) -> ModelSummary:
        """Its parts and what it costs. Raises ExportError with what is wrong with an export."""
        return summary_from(describe_model(self.found, self.trust_sha256)["summary"])

    def _tables(self) -> list[Table]:
        found, source = self.found, self.found.source
        rows = [("model", found.name), ("kind", found.kind)]
        if source is not None:
            rows += [("published by", source.owner), ("revision", source.revision)]
        if found.code is None:
            return [Table([row for row in rows if row[1]])]
        rows.append(("sha256 of model.py", found.sha256))
        text = found.code.read_text(encoding="utf-8", errors="replace")
        return [Table([row for row in rows if row[1]]), inspect_code(text).table()]

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self._tables()))

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self._tables())


def choose_model(name: str, revision: str = "", trust_sha256: str = "") -> ChosenModel:
    """The model called `name`, fetched if it is elsewhere, and remembered for training.ipynb.

    A preset, a run or folder, a gist id or URL, a zip, owner/name of the Hub; $TBT_MODEL replaces it, for a test or a
    scheduled run. Raises ValueError or FileNotFoundError with what there is instead.
    """
    found = find_model((os.environ.get("TBT_MODEL") or name).strip(), revision.strip())
    REMEMBERED.parent.mkdir(exist_ok=True)
    write_atomic(REMEMBERED, json.dumps(_told(found, trust_sha256), indent=2) + "\n")
    return ChosenModel(found, trust_sha256.strip())


def check_model(chosen: ChosenModel, *tiers: int) -> Report:
    """Ask the questions of some tiers, show each answer as it comes, and give the whole report back."""
    checks: list[Check] = []
    name = title(chosen.found.name, tiers)
    handle = display(Shown("asking ..."), display_id=True) or Nowhere()

    def show(words: str) -> None:
        handle.update(Shown(words, f"{Report(name, checks)._repr_html_() if checks else ''}{html.escape(words)}"))

    for check in ask(chosen.found, tiers, chosen.trust_sha256, started=lambda asked: show(f"{asked} ...")):
        checks.append(check)
    handle.update(Shown("", ""))  # what the cell returns draws the same again
    return Report(name, checks)


def save_report(path: str | Path, *reports: Report) -> Text:
    """Write the checks of some reports as one page that needs nothing else, and say where it is."""
    checks = [check for report in reports for check in report.checks]
    Report(reports[0].title, checks).save(Path(path))
    return Text(f"saved: {path}")


def show_model(config: RunConfig) -> ModelSummary:
    """The model that a run with these settings begins with: its parts and what it costs."""
    if config.model.kind in BUILT_IN:
        from utils.inference.load import untrained_model
        from utils.models.summary import summarize

        return summarize(untrained_model(prepare(config).config), config.model.kind)
    facts = prepare(config).facts
    assert facts is not None
    return summary_from(facts["summary"])


def model_settings(name: str, revision: str = "", trust_sha256: str = "") -> tuple[str, list[str]]:
    """The preset that `name` is, or the `key=value` settings for the model of that name; the other one is empty.

    An empty name is the model that template.ipynb looked at last, if it did.
    """
    if name.strip():
        told = _told(find_model(name.strip(), revision.strip()), trust_sha256)
    else:
        try:
            told = json.loads(REMEMBERED.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return "", []
    return told["preset"], told["settings"]


def _told(found: FoundModel, trust_sha256: str) -> dict[str, Any]:
    trust = [f"model.trust_sha256={trust_sha256.strip()}"] if trust_sha256.strip() else []
    return {"preset": found.name if found.kind == "preset" else "", "settings": [*found.settings(), *trust]}
