"""Files of plain text as documents: which files, and where one document ends; knows nothing of tokens or sides.

A file may be of any size: only one window of it is held, unless a document is a whole file.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.data.documents import BadRow, Document, Skipped
from utils.data.reading.text_stream import PACKED, bad_bytes, leave_out, text_blocks

ENDINGS = {
    "text": (".txt", ".md"),
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
SHORTEST = 2_000  # characters; a passage ends at the first empty line after this
LONG = 4  # times as much; or, if there is none by then, at the next end of a line
LONGEST = 32  # times as much; or, if there is none by then, here
LEAST = 200  # characters; how short the first passages of a file are that is all there is
FEW = 50  # passages; a text has about so many before they are longer than that
LONGEST_LINE = 1 << 26  # characters; a longer line is held to be no line
EMPTY_LINE = re.compile(r"\n[ \t\r]*\n")
SOMETHING = re.compile(r"[^ \t\r\n]")


# ---- Which files ----


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, what messages call it, and what the key of a source calls it: the same wherever the folder stands."""

    path: Path
    name: str
    key: str


def find_files(path: str, source: str, setting: str = "data.path") -> list[SourceFile]:
    """The file named, those a pattern fits, or every one of a source's endings below a folder; in order of path.

    Args:
        path: a file of any ending, a folder, or a pattern with `*`, `?`, `[...]` or `**`.
        source: one of ENDINGS, which says what is looked for in a folder. Hidden files and folders are left out.
        setting: what messages call the path.

    Raises FileNotFoundError, saying what there is instead.
    """
    start = Path(path).expanduser()
    try:
        if start.is_file():
            return [SourceFile(start, start.name, ".")]
        if start.is_dir():
            return _below(start, source, setting)
        if not start.exists() and glob.has_magic(path):
            return _fitting(start, setting)
    except PermissionError:
        raise ValueError(f"{setting}={path}: may not be read by this user (permission denied)") from None
    raise FileNotFoundError(f"{setting}={path}: {'not a file' if start.exists() else 'no such file or folder'}")


def _below(folder: Path, source: str, setting: str) -> list[SourceFile]:
    endings = tuple(ending + packed for ending in ENDINGS[source] for packed in ("", *PACKED))
    if source == "parquet":
        endings = ENDINGS[source]  # packed inside
    there = sorted(_walk(folder), key=lambda file: file.relative_to(folder).parts)
    found = [file for file in there if file.name.lower().endswith(endings)]
    if not found:
        others = sorted({file.suffix.lower() or file.name for file in there})
        has = f"there: {', '.join(others[:8])}{' ...' if len(others) > 8 else ''}" if others else "it is empty"
        raise FileNotFoundError(
            f"{setting}={folder} holds no {' or '.join(ENDINGS[source])} file ({has}); "
            "to read files of another ending, name one or give a pattern such as folder/*.log"
        )
    return _named(found, folder)


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: may not be read by this user ({error.strerror})")

    for below, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(below, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _fitting(pattern: Path, setting: str) -> list[SourceFile]:
    there = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True) if os.path.isfile(name))
    found = list({os.path.realpath(file): file for file in reversed(there)}.values())[::-1]  # `**` goes round a link
    if not found:
        raise FileNotFoundError(f"{setting}={pattern}: no file fits this pattern")
    first = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    return _named(found, Path(*pattern.parts[:first]))


def _named(found: list[Path], folder: Path) -> list[SourceFile]:
    keys = [file.relative_to(folder).as_posix() for file in found]
    names = [os.fsencode(key).decode("utf-8", "backslashreplace") for key in keys]  # a name may be any bytes
    return [SourceFile(file, name, key) for file, name, key in zip(found, names, keys, strict=True)]


# ---- Documents ----


def text_documents(
    files: Iterable[SourceFile],
    document: str,
    skipped: Skipped | None = None,
    side: str = "",
    part: int = 0,
    alone: bool = False,
) -> Iterator[Document]:
    """The documents of files, in order; `document` as data.document, `skipped` as in `text_blocks`.

    `alone`: it is one file, and will be; a short one has several passages, too, or nothing were left to validate on.
    """
    cut = fine_passages if alone and document == "passage" else CUTS[document]
    for file in files:
        blocks = text_blocks(file.path, file.name, skipped)
        try:
            for line, text in cut(blocks, file.name):
                if skipped is not None and (bad := bad_bytes(text, file.name, line)):
                    skipped.add(bad)
                else:
                    where = file.name if document == "file" else f"{file.name} line {line}"
                    yield Document(text, where, None, None, None, side, part)
        except BadRow as bad:  # what ends the file
            leave_out(bad, skipped)


def whole(blocks: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """(1, all of it)."""
    yield 1, "".join(blocks)


def numbered_lines(blocks: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """(number, line without its end) of each; a line ends with a newline, which may follow a carriage return."""
    number = 0
    for number, line in enumerate(lines(blocks, name), 1):
        yield number, line[:-1] if line.endswith("\r") else line


def lines(blocks: Iterable[str], name: str) -> Iterator[str]:
    """The lines of a text that comes in pieces, without their newlines. Raises BadRow if one never ends."""
    pieces: list[str] = []
    size = count = 0
    for block in blocks:
        first, *others = block.split("\n")
        pieces.append(first)
        size += len(first)
        if size > LONGEST_LINE:
            raise BadRow(f"{name} line {count + 1}", f"longer than {LONGEST_LINE:,} characters: has the file lines?")
        if others:
            yield "".join(pieces)
            yield from others[:-1]
            count += len(others)
            pieces, size = others[-1:], len(others[-1])
    if size:
        yield "".join(pieces)


def passages(blocks: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, passage) for passages of SHORTEST characters or more, as `cut_passages` has them."""
    return cut_passages(blocks, SHORTEST)


def fine_passages(blocks: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """The same from LEAST characters on, growing to SHORTEST within the first FEW x SHORTEST of the text."""
    return cut_passages(blocks, LEAST)


def cut_passages(blocks: Iterable[str], least: int) -> Iterator[tuple[int, str]]:
    """(number of its first line, passage): pieces that together are exactly the text, each cut by `passage_end`.

    As that sees one window only, adding to the end of a text changes no passage but the last.
    """
    coming = iter(blocks)
    text, at, before, line, more = "", 0, 0, 1, True
    while True:
        shortest = min(SHORTEST, max(least, before // FEW))
        while more and len(text) - at < LONGEST * shortest:
            block = next(coming, None)
            more = block is not None
            text, at = text[at:] + (block or ""), 0
        if at == len(text):
            return
        end = passage_end(text, at, shortest)
        passage = text[at:end]
        yield line, passage
        line += passage.count("\n")
        before += len(passage)
        at = end


def passage_end(text: str, start: int, shortest: int = SHORTEST) -> int:
    """Where the passage that begins at `start` ends; looks at no more than LONGEST x `shortest` characters.

    It ends before the first line that follows an empty one, from `shortest` on; else after the first line end from
    LONG x that on; else at LONGEST x that, or where the text does. A line of spaces is empty too.
    """
    long, limit = LONG * shortest, min(start + LONGEST * shortest, len(text))
    before = text.rfind("\n", start, start + shortest - 1)
    empty = EMPTY_LINE.search(text, max(before, start), min(start + long, limit))
    follows = SOMETHING.search(text, empty.end(), limit) if empty else None
    if follows:
        end = text.rfind("\n", start, follows.start()) + 1
        if end <= start + long:
            return end
    newline = text.find("\n", start + long - 1, limit)
    return newline + 1 if newline >= 0 else limit


CUTS = {"file": whole, "line": numbered_lines, "passage": passages}
