"""What a model is, asked in a process that may be lost: the model's own code is not run in this one."""

import json
import tempfile
from pathlib import Path
from typing import Any

from utils.jobs.box import Limits, start_boxed
from utils.jobs.find_model import FoundModel
from utils.models.findings import ExportError, Finding
from utils.runtime.files import read_regular

SECONDS = 120.0
MOST = 4_000_000  # bytes a description may have
WORDS = 2_000  # characters of the last output that are shown


def consents(found: FoundModel, trust_sha256: str) -> bool:
    """Whether the code may run even where it cannot be walled off: there is none, or this very code is trusted.

    Raises ValueError if the consent is to other code.
    """
    if found.code is None:
        return True
    if not trust_sha256:
        return False
    sha256 = found.sha256
    if sha256 != trust_sha256:
        raise ValueError(f"your consent is to a model.py of sha256 {trust_sha256}, and this one has {sha256}: read it")
    return True


def describe_model(found: FoundModel, trust_sha256: str = "") -> dict[str, Any]:
    """Class, task, limits and size of a model: see `utils.inference.describe`.

    Raises ExportError with what is wrong with an export, NotIsolated where its code may not run, RuntimeError where it
    ended otherwise than it should.
    """
    with tempfile.TemporaryDirectory(prefix="tbt-describe-") as folder:
        out = Path(folder) / "facts.json"
        with (Path(folder) / "log.txt").open("w+b") as log:
            arguments = {"kind": found.kind, "where": found.place, "name": found.name, "out": str(out)}
            box = start_boxed(
                "utils.inference.describe:write_description",
                arguments,
                read=found.read,
                write=[Path(folder)],
                limits=Limits(seconds=SECONDS),
                stdout=log,
                stderr=log,
                trusted=consents(found, trust_sha256),
            )
            ending = box.wait()
            if ending.code:
                raise RuntimeError(f"{found.name} could not be built: {last_words(log) or ending.words}")
            told = json.loads(read_regular(out, MOST))
    if "findings" in told:
        raise ExportError([Finding(**finding) for finding in told["findings"]])
    return dict(told["facts"])


def last_words(log: Any) -> str:
    """The last line of an output file, without what could move a terminal's cursor."""
    log.seek(0, 2)
    log.seek(max(0, log.tell() - WORDS))
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return plain(lines[-1]) if lines else ""


def plain(text: str) -> str:
    """Foreign text as it may be printed: no control characters but line feeds and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
