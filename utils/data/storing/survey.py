"""What a text holds: every document read once, and where each goes; kept on disk. Knows nothing of tokens."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.config.schema import DataConfig
from utils.data.documents import SIDES, Document, Skipped
from utils.data.reading.sources import parts_of, read_documents
from utils.data.storing.shards import read_json, write_json
from utils.data.storing.splits import DocumentTable, TableBuilder, assign_sides, describe_sides
from utils.runtime.files import write_atomic

BATCH = 1 << 21  # characters of documents looked at together
WHOLE = re.compile(r"[+-]?[0-9]{1,4000}", re.ASCII)  # more digits are no number to Python


@dataclass(frozen=True)
class Survey:
    """What one reading of all D documents found."""

    info: dict[str, Any]
    """kind, classes, documents and characters by side, by_part, empties, left_out, duplicates, skipped."""
    sides: np.ndarray
    """uint8 (D,): an index in SIDES, or LEFT_OUT."""
    characters: np.ndarray
    """uint32 (D,); 0 = nothing but white space."""
    content: np.ndarray
    """uint64 (D,): hash of what it says."""


def survey_of(folder: Path, config: DataConfig, say: Any) -> Survey:
    """The survey kept in `folder`, or a new one. Raises as `read_documents` and `assign_sides` do."""
    found = _kept(folder)
    if found is None:
        found = _look(config, say)
        _keep(found, folder)
    return found


def _look(config: DataConfig, say: Any) -> Survey:
    builder, skipped, kinds = TableBuilder(), Skipped(), _Kinds()
    read = 0
    for batch in _batches(read_documents(config, skipped)):
        builder.add(batch)
        kinds.add(batch)
        read += sum(len(document.text) for document in batch)
        say("reading", read, 0)
    table = builder.table()
    kind = kinds.only()
    say("comparing documents", 0, 0)
    sides = assign_sides(table, config)
    described = describe_sides(table, sides)
    info = {
        "kind": kind,
        "classes": kinds.classes(),
        "parts": len(parts_of(config)),
        "documents": {side: described[side] for side in SIDES},
        "characters": {side: described[f"{side}_characters"] for side in SIDES},
        "by_part": _by_part(table, sides),
        "empties": described["blank"],
        **{name: described[name] for name in ("left_out", "exact_duplicates", "near_duplicates", "leaks")},
        "skipped": {"count": skipped.count, "first": skipped.first},
    }
    return Survey(info, sides, table.characters, table.content)


def _by_part(table: DocumentTable, sides: np.ndarray) -> dict[str, int]:
    counts = np.zeros(4 * (int(table.part.max(initial=0)) + 1), np.int64)
    for i in range(0, len(sides), BATCH):  # bincount takes 8 bytes for each
        piece = slice(i, i + BATCH)
        counts += np.bincount(table.part[piece].astype(np.int64) * 4 + sides[piece], minlength=len(counts))
    return {
        f"{i // 4}-{SIDES[i % 4]}": int(count) for i, count in enumerate(counts) if count and i % 4 < len(SIDES)
    }  # fmt: skip


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += 200 + len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Kinds:
    """What kinds of documents there are, and which labels."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}  # of each kind, where its first document stands
        self._labels: set[str] = set()

    def add(self, documents: list[Document]) -> None:
        for document in documents:
            kind = _kind(document)
            if kind not in self._first:
                self._first[kind] = f"{document.where or 'a document'} (part {document.part + 1})"
            if kind == "labelled":
                self._labels.add(str(document.label))

    def only(self) -> str:
        """The one kind there is."""
        if len(self._first) > 1:
            found = "; ".join(f"{where} is {WORDS[kind]}" for kind, where in self._first.items())
            raise ValueError(
                f"the documents are of different kinds, and a run learns from one: {found}. Name the columns of each "
                "part (text_field, target_field, label_field), or leave some out with data.hook"
            )
        return next(iter(self._first), "text")

    def classes(self) -> list[str]:
        """All labels in order: as numbers if they are, else as text."""
        if all(WHOLE.fullmatch(label) for label in self._labels):
            return sorted(self._labels, key=lambda label: (int(label), label))
        return sorted(self._labels)


WORDS = {"text": "running text", "pairs": "a pair with an answer", "chat": "a chat", "labelled": "a text with a label"}


def _kind(document: Document) -> str:
    if document.messages is not None:
        return "chat"
    if document.target is not None:
        return "pairs"
    return "text" if document.label is None else "labelled"


# ---- On disk ----


def _keep(survey: Survey, folder: Path) -> None:
    arrays = io.BytesIO()
    np.savez(arrays, sides=survey.sides, characters=survey.characters, content=survey.content)
    write_atomic(folder / "survey.npz", arrays.getvalue())
    write_json(
        folder / "survey.json", {**survey.info, "arrays": hashlib.sha256(arrays.getbuffer()).hexdigest()}
    )  # fmt: skip


def _kept(folder: Path) -> Survey | None:
    info = read_json(folder / "survey.json")
    try:
        data = (folder / "survey.npz").read_bytes()
    except OSError:
        return None
    if info is None or info.pop("arrays") != hashlib.sha256(data).hexdigest():
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Survey(info, arrays["sides"], arrays["characters"], arrays["content"])
