"""What a model is, asked in a process that may be lost: the model's own code is not run in this one."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

from utils.jobs.box import Box, Limits, NotIsolated, start_boxed
from utils.jobs.find_model import FoundModel
from utils.models.findings import ExportError, Finding
from utils.runtime.files import read_regular, scratch_folder

SECONDS = 120.0
MOST = 4_000_000  # bytes a description may have
WORDS = 2_000  # characters of the last output that are shown
LAST = 64_000  # bytes of a log that are looked through
TASKS = ("causal", "masked", "seq2seq", "classification")
PART = ("name", "kind", "parameters", "tied_to")
MOST_PARTS, MOST_FINDINGS, MOST_COUNT = 1_000, 100, 1 << 62
UNPRINTED = ("Cc", "Cf", "Cs")  # controls, formats (such as writing backwards), halves of pairs
KEPT = "\n\t\u200c\u200d"  # and the joiners that some scripts and pictures need


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


def start_for(found: FoundModel, trust_sha256: str, target: str, arguments: dict[str, Any], **options: Any) -> Box:
    """`start_boxed` for a function that builds this model.

    Raises ValueError where walls are missing and the code is not trusted: it names the sha256 that a consent is to.
    """
    try:
        return start_boxed(target, arguments, trusted=consents(found, trust_sha256), **options)
    except NotIsolated as error:
        consent = f"--trust-sha256 {found.sha256} (or model.trust_sha256, or the form field of that name)"
        raise ValueError(f"{error} Here that is {consent}") from None


def describe_model(found: FoundModel, trust_sha256: str = "") -> dict[str, Any]:
    """Class, task, limits and size of a model: see `utils.inference.describe`.

    Raises ExportError with what is wrong with an export, ValueError where its code may not run, RuntimeError where it
    ended otherwise than it should.
    """
    with scratch_folder("describe") as folder:
        out = folder / "facts.json"
        with (folder / "log.txt").open("w+b") as log:
            arguments = {"kind": found.kind, "where": found.place, "name": found.name, "out": str(out)}
            with start_for(
                found,
                trust_sha256,
                "utils.inference.describe:write_description",
                arguments,
                read=found.read,
                write=[folder],
                limits=Limits(seconds=SECONDS),
                stdout=log,
                stderr=log,
            ) as box:
                ending = box.wait()
            if ending.code:
                raise RuntimeError(f"{found.name} could not be built: {last_words(log) or ending.words}")
            try:
                told = json.loads(read_regular(out, MOST))
                findings = clean_findings(told.get("findings", ()))
                facts = {} if findings else clean_facts(told["facts"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise RuntimeError(f"{found.name} gave no description that can be read: {plain(str(error))}") from None
    if findings:
        raise ExportError(findings)
    return facts


def clean_facts(told: Any) -> dict[str, Any]:
    """What `utils.inference.describe` tells, read as if a stranger had written it: known keys, their types, plain text.

    Raises KeyError, TypeError or ValueError where something is missing or is of another kind.
    """
    facts = {"class": _word(told["class"]), "task": _word(told["task"])}
    if facts["task"] not in TASKS:
        raise ValueError(f"task {facts['task']}")
    facts |= {key: _count(told[key]) for key in ("vocab_size", "block_size")}
    summary = told["summary"]
    parts = [
        {key: _count(part[key]) if key == "parameters" else _word(part[key]) for key in PART}
        for part in list(summary["parts"])[:MOST_PARTS]
    ]
    numbers = {key: _count(summary[key]) for key in ("parameters", "trainable", "flops_per_token")}
    numbers |= {key: float(summary[key]) for key in ("weights_mb", "training_mb")}
    facts["summary"] = {"name": _word(summary["name"]), "parts": parts, **numbers}
    facts["notes"] = [_word(note) for note in list(told.get("notes", ()))[:MOST_FINDINGS]]
    facts["findings"] = [finding.to_dict() for finding in clean_findings(told.get("findings", ()))]
    return facts


def clean_findings(told: Any) -> list[Finding]:
    """Findings that a stranger may have written. Raises TypeError, KeyError or ValueError where they are none."""
    findings = []
    for one in list(told)[:MOST_FINDINGS]:
        words = {key: _word(one[key]) for key in ("code", "message", "fix", "file", "severity")}
        if words["severity"] not in ("fail", "warn"):
            raise ValueError(f"severity {words['severity']}")
        findings.append(Finding(**words, line=_count(one["line"])))
    return findings


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of text")
    return plain(value[:WORDS])


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_COUNT:
        raise TypeError("no number of anything")
    return value


def last_bytes(path: Path) -> bytes:
    """The end of a plain file that a stranger may have written."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - LAST))
        return file.read(LAST)


def last_words(log: Any) -> str:
    """The last line of an output file, without what could move a terminal's cursor."""
    log.seek(0, 2)
    log.seek(max(0, log.tell() - WORDS))
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return plain(lines[-1]) if lines else ""


def plain(text: str) -> str:
    """Foreign text as it may be printed: no control characters but line ends and tabs, and none that turn it round."""
    return "".join("?" if unicodedata.category(c) in UNPRINTED and c not in KEPT else c for c in text)
