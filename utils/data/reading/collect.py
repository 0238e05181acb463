"""Texts that come by hand (a Python list, uploaded files): kept as files, with the settings that read them."""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from utils.runtime.files import fsync_folder

SOURCES = {
    ".txt": "text", ".md": "text", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "jsonl", ".parquet": "parquet",
}  # fmt: skip
PACKED = (".gz", ".zst")
ENDINGS = ", ".join(SOURCES)
MOST_BYTES = 4_000_000_000  # that a zip may unpack to
MOST_FILES = 20_000


def save_texts(texts: Iterable[str | dict[str, Any]], path: str | Path) -> list[str]:
    """Write texts as JSONL, whole or not at all, and give the settings that read them.

    Arguments:
        texts: strings; or dicts of JSON values, whose keys become columns. Any number: they are not held.
        path: the file to write; its folder is made.

    Raises ValueError: naming the index of what is neither, or saying that there are none.
    """
    if isinstance(texts, str | bytes | dict):
        raise ValueError(f"texts is one {type(texts).__name__}: give a list of them, such as [text]")
    path = Path(path).expanduser()
    count = 0
    with _new_file(path) as file:
        for count, item in enumerate(texts, 1):
            file.write(_line(item, count - 1))
        if not count:
            raise ValueError("texts is empty: there is no text to learn from")
    return _words("jsonl", path)


def _line(item: Any, index: int) -> bytes:
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, dict) or not item:
        raise ValueError(f"texts[{index}] is {_said(item)}: each must be a str, or a dict such as {{'text': ...}}")
    for key in item:
        if not isinstance(key, str):
            raise ValueError(f"texts[{index}] has the key {key!r}: the names of columns are str")
    try:
        return json.dumps(item, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise ValueError(
            f"texts[{index}] holds {error.object[error.start]!a}, half a character: repair it with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"texts[{index}] holds what JSON cannot: {error}") from None


def _said(item: Any) -> str:
    return "an empty dict" if item == {} else f"{type(item).__name__} {str(item)[:40]!r}"


def settings_for(path: str | Path) -> list[str]:
    """The settings that read a file or folder, told by its endings; a zip is unpacked beside itself first.

    Raises FileNotFoundError, or ValueError naming the endings that are read, or those that are mixed.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix.lower() == ".zip":
            return settings_for(unpack(path))
        source = _source(path)
        if not source:
            raise ValueError(f"{path}: files that end in {path.suffix or 'nothing'} are not read; {_read()}")
        return _words(source, path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    kinds: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.is_file() and (source := _source(file)):
            kinds.setdefault(source, file)
    if not kinds:
        raise ValueError(f"{path} holds no file to learn from; {_read()}")
    if len(kinds) > 1:
        found = ", ".join(f"{source} ({file.relative_to(path)})" for source, file in kinds.items())
        raise ValueError(f"{path} holds files of several kinds: {found}: keep one kind, or name a file")
    return _words(next(iter(kinds)), path)


def _read() -> str:
    return f"those that end in {ENDINGS} are (also with .gz or .zst after it, or in a .zip)"


def _source(path: Path) -> str:
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    return SOURCES.get(endings[-1], "") if endings else ""


def _words(source: str, path: Path) -> list[str]:
    return [f"data.source={source}", f"data.path={path}"]


def unpack(path: Path, most_bytes: int = MOST_BYTES) -> Path:
    """Unpack the files of a zip that can be learned from, into a folder named like it; that folder.

    It is there whole or not at all, replaces an older one, and nothing is written outside of it: no absolute path,
    no `..`, no link. Raises ValueError for a damaged zip, one with a password, or one that unpacks to too much.
    """
    folder = path.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{path} unpacks into {folder}, which is a file: rename one of them")
    new = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        with zipfile.ZipFile(path) as archive:
            _unpack_into(archive, path, new, most_bytes)
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged, or no zip: {error}") from None
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{path} holds the same name twice: {Path(str(error.filename)).name}; unpack it by hand"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    fsync_folder(folder.parent)
    return folder


def _unpack_into(archive: zipfile.ZipFile, path: Path, folder: Path, left: int) -> None:
    wanted = [entry for entry in archive.infolist() if not entry.is_dir() and _wanted(entry.filename)]
    if not wanted:
        raise ValueError(f"{path} holds no file to learn from; {_read()}")
    if len(wanted) > MOST_FILES:
        raise ValueError(f"{path} holds {len(wanted):,} files, and at most {MOST_FILES:,} are unpacked")
    total = left
    for entry in wanted:
        if entry.flag_bits & 1:
            raise ValueError(f"{path} needs a password: unpack it by hand")
        target = folder.joinpath(*map(safe_name, PurePosixPath(entry.filename.replace("\\", "/")).parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, target.open("xb") as out:
            while data := packed.read(1 << 20):
                left -= len(data)  # counted as it comes: what the zip says of its sizes may be a lie
                if left < 0:
                    raise ValueError(f"{path} unpacks to more than {total:,} bytes: unpack it by hand")
                out.write(data)


def _wanted(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise ValueError(f"a zip with a file called {name!r}, outside of its folder, is not unpacked")
    return not any(part.startswith((".", "__MACOSX")) for part in parts) and bool(_source(Path(parts[-1])))


def save_uploads(files: Iterable[tuple[str, bytes]], folder: str | Path) -> list[Path]:
    """Keep uploaded (name, bytes) in a folder, each whole or not at all, under a safe name; the paths.

    A file of the same name is replaced. Raises ValueError for an ending that is not read, before anything is kept.
    """
    folder = Path(folder).expanduser()
    named = [(folder / safe_name(name), data) for name, data in files]
    for path, _ in named:
        if path.suffix.lower() != ".zip" and not _source(path):
            raise ValueError(f"{path.name}: files of this ending are not read; {_read()}")
    if twice := {path.name for i, (path, _) in enumerate(named) if path in [other for other, _ in named[:i]]}:
        raise ValueError(f"two files are called {', '.join(sorted(twice))}: rename one of them")
    for path, data in named:
        with _new_file(path) as file:
            file.write(data)
    return [path for path, _ in named]


def settings_of(paths: Sequence[Path], folder: Path) -> list[str]:
    """The settings for files just kept: for the one there is, else for their folder. Zips are unpacked."""
    ready = [unpack(path) if path.suffix.lower() == ".zip" else path for path in paths]
    return settings_for(ready[0] if len(ready) == 1 else folder)


def safe_name(name: str) -> str:
    """A file name without folders, and without what a shell or a file system takes amiss; never empty or hidden."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c if c.isalnum() or c in "._-+() " else "_" for c in last).strip(". ")
    stem, dot, ending = kept.rpartition(".")
    while len(kept.encode()) > 200 and stem:
        stem = stem[:-1]
        kept = stem + dot + ending
    return kept or "file"


class _new_file:
    """A file that takes its name when it is whole: `with _new_file(path) as file: file.write(...)`."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f"{path.name}.tmp-{os.getpid()}")

    def __enter__(self) -> IO[bytes]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.temporary.open("wb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.file:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
        if kind is None:
            os.replace(self.temporary, self.path)
            fsync_folder(self.path.parent)
        else:
            with suppress(OSError):
                self.temporary.unlink()
