"""Text to a token store: what there is, which side it is for, a tokenizer, ids; what is done is never done twice.

Two passes over the documents, neither of which keeps them: the first decides where each goes, the second encodes.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.config.schema import DataConfig
from utils.data.documents import SIDES, Document, Skipped
from utils.data.reading.sources import floor_nats, parts_of, prepare_source, read_documents, source_key
from utils.data.storing.encode import Manner, Unit
from utils.data.storing.encoders import Encoders, cores
from utils.data.storing.shards import FORMAT, INFO, WORK, Record, read_info, write_json
from utils.data.storing.splits import LEFT_OUT, content_of
from utils.data.storing.store_tokenizer import separator_of, tokenizer_for, tokenizer_key
from utils.data.storing.survey import Survey, survey_of
from utils.data.tokenizing.tokenizer import Tokenizer
from utils.runtime.files import fsync_folder, sha256_file, sha256_json

UNIT = 1 << 22  # characters of text in a shard; another number gives other fingerprints
SMALL = 1 << 22  # characters that are not worth a process
OLD = 86_400.0  # seconds after which what a killed build left is removed
CHANGED = (
    "the text changed while it was read: run it again. Copy it first if something still writes to it; a data.hook must "
    "make the same of the same text each time"
)

Progress = Callable[[str, int, int], None]


def store_name(config: DataConfig, own_tokenizer: Path | None = None) -> tuple[str, dict[str, Any]]:
    """The folder's name, and what decides what is in it."""
    made_of: dict[str, Any] = {
        "format": FORMAT,
        "source": source_key(config),
        "tokenizer": tokenizer_key(config, own_tokenizer),
        "separator": config.separator,
        "split": {
            name: getattr(config, name) for name in ("val_fraction", "test_fraction", "split_by", "duplicates")
        },
    }  # fmt: skip
    kind = made_of["tokenizer"].get("kind", "own")
    return f"{kind}-{sha256_json(made_of)[:32]}", made_of


def build(
    folder: Path, config: DataConfig, made_of: dict[str, Any], own: Path | None, progress: Progress | None
) -> None:
    """Make the store in `folder`, or wait until the process that is at it has made it.

    Raises FileNotFoundError or ValueError when the text cannot be used, or the disk is full.
    """
    try:
        with _alone(folder) as lock:
            if read_info(folder) is None:
                building = folder.with_name(f"{folder.name}.building")
                if building.exists():
                    os.utime(building)  # this one is not given up
                _remove_old(folder.parent)
                if read_info(building) is None:
                    _Build(building, config, made_of, own, progress, lock).run()
                _put(building, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"the disk of {folder.parent} is full: make room, or set TBT_CACHE to a folder elsewhere. What is done "
                "is kept, and the same command goes on from there"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            at = Path(error.filename) if error.filename else folder
            if folder.parent in (at, *at.parents) or at in folder.parents:
                raise ValueError(
                    f"the cache {folder.parent} cannot be written ({error.strerror}): set TBT_CACHE"
                ) from None
        raise


class _Changed(ValueError):
    """What was read is not what the store is named after."""


class _Build:
    """One store in the making."""

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        made_of: dict[str, Any],
        own: Path | None,
        progress: Progress | None,
        lock: int,
    ) -> None:
        self.folder, self.config, self.made_of, self.own, self.lock = folder, config, made_of, own, lock
        self.say = _Sparing(progress)
        self.records: dict[str, Record] = {}

    def run(self) -> None:
        """Everything but the rename."""
        (self.folder / WORK).mkdir(parents=True, exist_ok=True)
        try:
            prepare_source(self.config, self.say)
            survey = survey_of(self.folder / WORK, self.config, self.say)
        except BaseException:
            with contextlib.suppress(OSError):  # unless it holds something that is worth keeping
                (self.folder / WORK).rmdir()
                self.folder.rmdir()
            raise
        tokenizer = tokenizer_for(self.folder, self.config, survey, self.own, self.say)
        ids, newline = separator_of(tokenizer, self.config, survey.info["kind"])
        dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self._check_room(survey, np.dtype(dtype).itemsize, tokenizer.vocab_size)
        try:
            self._encode(survey, Manner(survey.info["kind"], dtype, ids, newline))
            if store_name(self.config, self.own)[1] != self.made_of:
                raise _Changed(CHANGED)
        except _Changed:  # nothing that was found out, perhaps by an earlier build, can be relied on
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._finish(survey, tokenizer, dtype)

    def _check_room(self, survey: Survey, item: int, vocab_size: int) -> None:
        """Fewer characters than tokens is rare, and two of them a token usual where tokens are learned."""
        characters = sum(survey.info["characters"].values())
        need = characters * item // (1 if vocab_size <= 512 else 2) + 16 * len(survey.sides)
        have = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder).free + have
        if need > free:
            raise ValueError(
                f"the tokens need about {need / 1e6:,.1f} MB in {self.folder.parent}, where {free / 1e6:,.1f} MB are "
                "free: make room, set TBT_CACHE to a folder elsewhere, or take fewer with data.max_documents"
            )

    def _encode(self, survey: Survey, manner: Manner) -> None:
        total, done = sum(survey.info["characters"].values()), 0

        def note(name: str, record: Record, characters: int) -> None:
            nonlocal done
            done += characters
            self.records[name] = record
            self.say("encoding", done, total)

        processes = cores() if total >= SMALL else 1
        with Encoders(self.folder, manner, processes, note, self.lock) as encoders:
            for unit, characters in units(read_documents(self.config, Skipped()), survey):
                encoders.add(unit, characters)
            encoders.finish()

    def _finish(self, survey: Survey, tokenizer: Tokenizer, dtype: str) -> None:
        """Write what the store is. Only what is counted here is in it."""
        files = {path.name: sha256_file(path) for path in sorted(self.folder.glob("*.json*")) if path.name != INFO}
        files = {name: digest for name, digest in files.items() if ".tmp-" not in name}
        shards: dict[str, list[int]] = defaultdict(list)
        tokens = [dict.fromkeys(SIDES, 0) for _ in parts_of(self.config)]
        text_bytes = dict.fromkeys(SIDES, 0)
        content = []
        for name in sorted(self.records):
            record = self.records[name]
            part, side = name.split("/")[0].split("-")
            shards[f"{part}-{side}"].append(record["tokens"])
            tokens[int(part)][side] += record["tokens"]
            text_bytes[side] += record["bytes"]
            files |= record["files"]
            content.append([part, side, *(record["files"][path] for path in sorted(record["files"]))])
        classes = survey.info["classes"]
        info = {
            **survey.info,
            "format": FORMAT,
            "dtype": dtype,
            "vocab_size": tokenizer.vocab_size,
            "files": files,
            "shards": dict(shards),
            "tokens": tokens,
            "bytes": text_bytes,
            "fingerprint": sha256_json([tokenizer.fingerprint, dtype, survey.info["kind"], classes, content]),
            "train_characters": survey.info["characters"]["train"],
            "val_characters": survey.info["characters"]["val"],
            "val_bytes": text_bytes["val"],
            "val_nats": floor_nats(self.config),
            "made_of": self.made_of,
        }
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder)
            if path.is_file() and inside.parts[0] != WORK and inside.as_posix() not in files:
                path.unlink()  # what a killed build had begun
        write_json(self.folder / INFO, info)


def units(documents: Iterator[Document], survey: Survey) -> Iterator[tuple[Unit, int]]:
    """The kept documents, by part and side, in units of about UNIT characters; and how many characters each has.

    Raises ValueError if they are not those of the survey.
    """
    kind, classes = survey.info["kind"], {name: i for i, name in enumerate(survey.info["classes"])}
    left = dict(survey.info["by_part"])
    waiting: dict[str, list[Any]] = defaultdict(list)
    size: dict[str, int] = defaultdict(int)
    number: dict[str, int] = defaultdict(int)
    count = -1
    for count, document in enumerate(documents):
        if count >= len(survey.sides):
            break
        side = int(survey.sides[count])
        if side == LEFT_OUT:
            continue
        if content_of(document) != survey.content[count]:
            raise _Changed(f"{document.where}: {CHANGED}")
        where = f"{document.part}-{SIDES[side]}"
        waiting[where].append(_written(document, kind, classes))
        size[where] += int(survey.characters[count])
        left[where] = left.get(where, 0) - 1
        if size[where] >= UNIT or not left[where]:
            yield Unit(f"{where}/{number[where]:05d}", waiting.pop(where), not left[where]), size.pop(where)
            number[where] += 1
    if count + 1 != len(survey.sides) or waiting:
        raise _Changed(CHANGED)


def _written(document: Document, kind: str, classes: dict[str, int]) -> Any:
    """A document as a unit has it."""
    if kind == "chat":
        return [document.where, document.messages]
    if kind == "pairs":
        return [document.text, document.target]
    return document.text if kind == "text" else [document.text, classes[str(document.label)]]


class _Sparing:
    """Progress, told at most ten times a second and whenever something else begins."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._what, self._when = progress, "", 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if self._progress and (what != self._what or now - self._when >= 0.1 or done == of):
            self._what, self._when = what, now
            self._progress(what, done, of)


# ---- The folder ----


def _put(building: Path, folder: Path) -> None:
    """Give a whole store its name."""
    shutil.rmtree(building / WORK, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # it was damaged
    for path in (*(each for each in building.iterdir() if each.is_dir()), building):
        fsync_folder(path)
    os.rename(building, folder)
    fsync_folder(folder.parent)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Wait until no other process builds this store; gives what holds the others off as long as it is open."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                break  # else the one we waited for has removed it
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    try:
        yield lock
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _remove_old(folder: Path) -> None:
    """Remove what builds left that were killed long ago and never came again."""
    for path in (*folder.glob("*.building"), *folder.glob("*.tmp-*")):
        with contextlib.suppress(OSError):
            newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
            if time.time() - newest > OLD:
                shutil.rmtree(path, ignore_errors=True)
