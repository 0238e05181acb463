"""A file's text, block by block: unpacked, decoded, refused if it is no text; knows nothing of documents.

Nothing here holds more than a few blocks, so a file may be of any size.
"""

import codecs
import gzip
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from utils.data.documents import BadRow, Skipped

BLOCK = 1 << 20  # bytes read at a time
PACKED_BLOCK = 1 << 14  # the same of a .zst, which may unpack to a hundred times as much
HEAD = 1 << 16  # bytes that show what a file is
PACKED = (".gz", ".zst")

BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", ""),
    (b"\0\0\xfe\xff", ""),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
MAGIC = (  # how a file begins that is no text, what it is, what to do
    (b"%PDF-", "a PDF", "save its text first (pdftotext)"),
    (b"PK\x03\x04", "a zip file (or .docx, .xlsx, .epub, .odt)", "unpack it, or save the document as plain text"),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.doc, .xls)", "save it as plain text"),
    (b"{\\rtf", "a Rich Text document", "save it as plain text"),
    (b"\x1f\x8b", "gzip-packed", "give its name the ending .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd-packed", "give its name the ending .zst"),
    (b"BZh", "bzip2-packed", "unpack it (bunzip2)"),
    (b"\xfd7zXZ\0", "xz-packed", "unpack it (unxz)"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"PAR1", "a parquet file", "read it with data.source=parquet"),
    (b"ARROW1", "an Arrow file", "save it as parquet"),
    (b"SQLite format 3\0", "an SQLite database", "export its table as csv"),
    (b"\x93NUMPY", "a NumPy array", "this wants text"),
    (b"\x89PNG", "a picture (PNG)", "this wants text"),
    (b"\xff\xd8\xff", "a picture (JPEG)", "this wants text"),
    (b"GIF8", "a picture (GIF)", "this wants text"),
    (b"RIFF", "a sound, picture or film (RIFF)", "this wants text"),
    (b"OggS", "a sound (Ogg)", "this wants text"),
    (b"ID3", "a sound (MP3)", "this wants text"),
    (b"\x7fELF", "a program (ELF)", "this wants text"),
    (b"MZ", "a program (Windows)", "this wants text"),
)
CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"


def leave_out(bad: BadRow, skipped: Skipped | None) -> None:
    """Count a bad row where rows may be skipped; raise it where they may not (`skipped` is None)."""
    if skipped is None:
        raise bad
    skipped.add(bad)


def text_blocks(path: Path, name: str, skipped: Skipped | None = None) -> Iterator[str]:
    """The text of a file in pieces, character for character; only a byte order mark is dropped.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark; .gz and .zst are unpacked.
        name: what messages call it.
        skipped: if given, a byte that is no text becomes half a character instead of an error (`bad_bytes` finds it),
            and what is no text at all, or damaged, is counted and ends here.

    Raises BadRow naming the file, line, offset and byte; ValueError for what may not be read.
    """
    try:
        with closing(byte_blocks(path, name)) as blocks:
            head = next(blocks, b"")
            encoding, mark = encoding_of(head, name)
            yield from _decoded(chain([head[mark:]], blocks), name, encoding, mark, skipped is not None)
    except BadRow as bad:
        leave_out(bad, skipped)


def _decoded(blocks: Iterator[bytes], name: str, encoding: str, offset: int, lenient: bool) -> Iterator[str]:
    """The blocks' text. `offset`: bytes before the first of them."""
    decoder = codecs.getincrementaldecoder(encoding)("keep bad bytes" if lenient else "strict")
    lines = 1
    for data in chain(filter(None, blocks), [b""]):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            lines += error.object[: error.start].decode(encoding).count("\n")
            raise _bad_byte(name, lines, error.object[error.start], offset - waiting + error.start, encoding) from None
        offset += len(data)
        lines += text.count("\n")
        if text:
            yield text


def _keep_bad_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("keep bad bytes", _keep_bad_bytes)


def bad_bytes(text: str, name: str, line: int) -> BadRow | None:
    """What is wrong with a text, decoded with `skipped`, that begins on `line`; None if nothing is."""
    at = half_character(text)
    return None if at < 0 else _bad_byte(name, line + text.count("\n", 0, at), ord(text[at]) & 0xFF)


def half_character(text: str) -> int:
    """Where in a text the first surrogate stands, which is no character; -1 if none does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return -1


def _bad_byte(name: str, line: int, byte: int, offset: int | None = None, encoding: str = "utf-8") -> BadRow:
    at = "" if offset is None else f" at offset {offset:,}"
    kind, other = ("UTF-8", "LATIN1") if encoding == "utf-8" else ("UTF-16", "UTF-16")
    return BadRow(
        f"{name} line {line}",
        f"not {kind} text: byte 0x{byte:02x}{at}. Is it in another encoding? `iconv -f {other} -t UTF-8` converts "
        "one; data.on_bad_row=skip leaves out what holds such bytes",
    )


# ---- What a file is ----


def encoding_of(head: bytes, name: str) -> tuple[str, int]:
    """How the text that begins like this is encoded, and the length of its byte order mark; BadRow if it is no text."""
    for mark, encoding in BOMS:
        if head.startswith(mark):
            if not encoding:
                raise BadRow(name, "UTF-32 text: convert it first (`iconv -f UTF-32 -t UTF-8`)")
            return encoding, len(mark)
    problem = not_text(head[:HEAD])
    if problem:
        raise BadRow(name, problem)
    return "utf-8", 0


def not_text(head: bytes) -> str:
    """Why bytes without a byte order mark are no text, and what to do; empty if they may be text.

    A NUL or another control character may stand in a text: but not many of them, and no NUL among bytes that are not
    UTF-8.
    """
    control = len(head) - len(head.translate(None, CONTROL))
    clean = _is_utf8(head)
    if not clean or control or head.startswith((b"%PDF-", b"{\\rtf")):
        for begin, what, todo in MAGIC:
            if head.startswith(begin):
                return f"this is no text but {what}: {todo}"
    zeros = head.count(0)
    if zeros >= 4 and zeros >= 0.3 * len(head) and zeros in (head[::2].count(0), head[1::2].count(0)):
        order = "BE" if head[0] == 0 else "LE"
        return f"this looks like UTF-16 without a byte order mark: convert it (`iconv -f UTF-16{order} -t UTF-8`)"
    if (zeros and not clean) or (control >= 16 and control > 0.3 * len(head)):
        first = len(head) - len(head.lstrip(bytes(set(range(256)) - set(CONTROL))))
        return (
            f"this looks like a binary file, not text (byte 0x{head[first]:02x} at offset {first:,}): this wants text"
        )
    return ""


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # not final: the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


# ---- Bytes ----


def byte_blocks(path: Path, name: str) -> Generator[bytes]:
    """A file's bytes, unpacked if its name ends in .gz or .zst. Raises BadRow if it is damaged."""
    kind = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if kind == ".zst":
                yield from _unpack_zst(file, name)
                return
            stream = gzip.GzipFile(fileobj=file) if kind == ".gz" else file
            while block := stream.read(BLOCK):
                yield block
    except EOFError:
        raise BadRow(name, _damaged("gzip", "it ends too early")) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadRow(name, _damaged("gzip", str(error))) from None
    except PermissionError:
        raise ValueError(f"{path}: may not be read by this user (permission denied)") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (was it removed just now?)") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None


def _damaged(kind: str, why: str) -> str:
    return f"damaged, or not packed with {kind} ({why}): get the file again, or give it the ending it should have"


def _unpack_zst(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The blocks of one or more zstd frames. Unlike the library's own reader it notices that the last one is cut."""
    import zstandard

    frame, whole, kept, size = None, True, [], 0
    while data := file.read(PACKED_BLOCK):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                kept.append(frame.decompress(data))
            except zstandard.ZstdError as error:
                raise BadRow(name, _damaged("zstd", str(error))) from None
            size += len(kept[-1])
            whole, data = frame.eof, frame.unused_data if frame.eof else b""
            frame = None if whole else frame
        if size >= BLOCK:
            yield b"".join(kept)
            kept, size = [], 0
    if kept:
        yield b"".join(kept)
    if not whole:
        raise BadRow(name, _damaged("zstd", "it ends too early"))
