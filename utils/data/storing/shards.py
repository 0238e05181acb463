"""The files of a token store: one unit of documents is one shard, whole or not there; knows nothing of text.

info.json                       what the store is, with the sha256 of every other file; written last
tokenizer.json ...              the tokenizer
0-train/00000.ids.bin           ids of part 0's first training documents, one after the other
0-train/00000.docs.npy          int64 (1 or 2, D): the length of each; where its answer begins, or its class
0-train/00000.answers.bin       uint8, one for each id: 1 = it is learned (chats)
work/                           only while it is made: what a build that was killed goes on from
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.documents import SIDES
from utils.data.storing.tokens import Shard, Tokens
from utils.runtime.files import sha256_file, sha256_json, write_atomic

FORMAT = 2
INFO = "info.json"
WORK = "work"
Record = dict[str, Any]  # what is known of one shard: its unit's content hash, how much it holds, its files' sha256


@dataclass(frozen=True)
class Encoded:
    """The ids of a unit of documents."""

    ids: bytes
    """N of them, in the store's dtype."""
    docs: np.ndarray
    """int64 (1 or 2, D): lengths, and targets or labels."""
    answers: bytes | None
    """N of uint8, for chats."""
    text_bytes: int
    """How long the text is in UTF-8."""


def write_shard(folder: Path, name: str, content: str, encoded: Encoded, item_size: int) -> Record:
    """Write a unit's files and, last, the record that vouches for them. `name` is like 0-train/00000."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    docs = io.BytesIO()
    np.save(docs, encoded.docs, allow_pickle=False)
    data = {f"{name}.ids.bin": encoded.ids, f"{name}.docs.npy": docs.getvalue()}
    if encoded.answers is not None:
        data[f"{name}.answers.bin"] = encoded.answers
    for path, of_file in data.items():
        write_atomic(folder / path, of_file)
    record = {
        "content": content,
        "tokens": len(encoded.ids) // item_size,
        "documents": encoded.docs.shape[1],
        "bytes": encoded.text_bytes,
        "files": {path: hashlib.sha256(of_file).hexdigest() for path, of_file in data.items()},
    }
    write_json(_record_path(folder, name), record)
    return record


def done_shard(folder: Path, name: str, content: str) -> Record | None:
    """The record of a unit that was done earlier, if it was of the same content and its files are whole."""
    record = read_json(_record_path(folder, name))
    try:
        return record if record and record["content"] == content and are_whole(folder, record["files"]) else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _record_path(folder: Path, name: str) -> Path:
    return folder / WORK / f"{name.replace('/', '-')}.json"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its own hash beside it."""
    write_atomic(path, json.dumps({"value": value, "sha256": sha256_json(value)}, indent=1, sort_keys=True))


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote, if it is still that."""
    try:
        if not path.is_file():  # a pipe would never end
            return None
        wrapped = json.loads(path.read_text(encoding="utf-8"))
        return wrapped["value"] if wrapped["sha256"] == sha256_json(wrapped["value"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_info(folder: Path) -> dict[str, Any] | None:
    """What a store says of itself, if it is whole: every file is there and has the bytes that were written."""
    info = read_json(folder / INFO)
    try:
        return info if info and info["format"] == FORMAT and are_whole(folder, info["files"]) else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None


def are_whole(folder: Path, files: dict[str, str]) -> bool:
    """Whether each file is there with the bytes of its sha256."""
    return all(_is_own(folder, path) and sha256_file(folder / path) == digest for path, digest in files.items())


def _is_own(folder: Path, path: str) -> bool:
    """Whether a name is one of a plain file below the folder: a device, a pipe or a link could lead anywhere."""
    inside = Path(path)
    below = [folder / each for each in (inside, *inside.parents[:-1])]
    plain = not inside.is_absolute() and ".." not in inside.parts and (folder / inside).is_file()
    return plain and not any(each.is_symlink() for each in below)


def tokens_of(folder: Path, info: dict[str, Any], part: int, side: str) -> Tokens:
    """The ids of one side of one part of a store."""
    assert side in SIDES
    names = [f"{part}-{side}/{i:05d}" for i in range(len(info["shards"].get(f"{part}-{side}", [])))]
    counts = info["shards"].get(f"{part}-{side}", [])
    rows = [np.load(folder / f"{name}.docs.npy", allow_pickle=False) for name in names]
    docs = np.concatenate(rows, axis=1) if rows else np.empty((2, 0), np.int64)
    second = docs[1] if len(docs) > 1 else None
    dtype = np.dtype(info["dtype"])
    starts = np.concatenate(([0], np.cumsum(docs[0], dtype=np.int64)))
    answers = None
    if info["kind"] == "chat":
        marks = [
            Shard(folder / f"{name}.answers.bin", n, np.uint8) for name, n in zip(names, counts, strict=True)
        ]  # fmt: skip
        answers = Tokens(marks or [Shard(np.empty(0, np.uint8), 0, np.uint8)], starts)
    return Tokens(
        [Shard(folder / f"{name}.ids.bin", n, dtype) for name, n in zip(names, counts, strict=True)]
        or [Shard(np.empty(0, dtype), 0, dtype)],
        starts,
        second if info["kind"] == "pairs" else None,
        second if info["kind"] == "labelled" else None,
        answers,
    )
