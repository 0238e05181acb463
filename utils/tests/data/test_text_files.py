"""Text comes in exactly as it is in the files, whatever packs them, and is cut without losing a character."""

import gzip
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.documents import BadRow, Skipped
from utils.data.reading import text_files
from utils.data.reading.text_files import LONG, LONGEST, SHORTEST, find_files, lines, passage_end, text_documents
from utils.data.reading.text_stream import text_blocks

LETTERS = st.text(st.characters(exclude_categories=["Cs"]))


def documents(path, document="passage", skipped=None):
    return list(text_documents(find_files(str(path), "text"), document, skipped))


def texts(path, document="passage", skipped=None):
    return [one.text for one in documents(path, document, skipped)]


def written(folder, data, name="book.txt"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# -- which files -----------------------------------------------------------------------------------


def test_a_file_is_read_whatever_its_ending(tmp_path):
    path = written(tmp_path, "one\ntwo\n", "book.log")
    assert [(file.name, file.key) for file in find_files(str(path), "text")] == [("book.log", ".")]
    assert texts(path) == ["one\ntwo\n"]


def test_a_folder_is_every_text_below_it_in_order_of_path_and_nothing_hidden(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "folder.txt").mkdir()
    for name in ("b.TXT", "a.md", "sub/c.txt", "z.py", "d.json", "folder.txt/e.md", ".hidden.txt", ".git/f.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "g.txt.gz").write_bytes(gzip.compress(b"packed", mtime=0))
    assert [file.key for file in find_files(str(tmp_path), "text")] == [
        "a.md", "b.TXT", "folder.txt/e.md", "g.txt.gz", "sub/c.txt",
    ]  # fmt: skip
    assert texts(tmp_path) == ["a.md", "b.TXT", "folder.txt/e.md", "packed", "sub/c.txt"]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("csv", ["a.csv", "a.tsv", "b.csv.gz"]),
        ("jsonl", ["a.json", "a.jsonl", "a.ndjson", "b.jsonl.zst"]),
        ("parquet", ["a.parquet"]),
    ],
)
def test_every_kind_of_file_has_its_endings(tmp_path, source, wanted):
    for name in ("a.csv", "a.tsv", "b.csv.gz", "a.json", "a.jsonl", "a.ndjson", "b.jsonl.zst", "a.parquet", "a.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find_files(str(tmp_path), source)] == wanted


def test_a_pattern_is_every_file_that_fits_named_from_where_it_begins(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("x/2.log", "x/y/1.log", "x/y/3.txt", "0.log"):
        (tmp_path / name).write_text(name)
    found = find_files(f"{tmp_path}/x/**/*.log", "text")
    assert [file.name for file in found] == ["2.log", "y/1.log"]
    (tmp_path / "a[1].txt").write_text("a name with brackets is a name")
    assert texts(tmp_path / "a[1].txt") == ["a name with brackets is a name"]


def test_what_is_not_there_is_said_with_what_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^data.path={tmp_path}/none: no such file or folder$"):
        find_files(f"{tmp_path}/none", "text")
    with pytest.raises(FileNotFoundError, match=r"^data.val_from=.*/\*.txt: no file fits this pattern$"):
        find_files(f"{tmp_path}/*.txt", "text", "data.val_from")
    with pytest.raises(FileNotFoundError, match=r"holds no .txt or .md file \(it is empty\)"):
        find_files(str(tmp_path), "text")
    for name in ("data.csv", "README", "b.csv"):
        (tmp_path / name).touch()
    said = r"holds no .txt or .md file \(there: .csv, README\); to read files of another ending, name one"
    with pytest.raises(FileNotFoundError, match=said):
        find_files(str(tmp_path), "text")


@contextmanager
def nobody():
    """Give up root's right to read everything for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_one_may_not_read_is_named():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        inner = Path(folder, "texts")
        inner.mkdir()
        path = written(inner, "secret")
        os.chmod(folder, 0o755)
        path.chmod(0)
        with (
            nobody(),
            pytest.raises(ValueError, match=f"^{path}: may not be read by this user \\(permission denied\\)$"),
        ):
            documents(path)
        inner.chmod(0)
        for given in (inner, path, inner / "*.txt"):
            said = "may not be read by this user|no file fits"
            with nobody(), pytest.raises((ValueError, FileNotFoundError), match=said):
                documents(given)
        inner.chmod(0o755)


# -- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["a\r\nb\r\n", "a\rb\n", "tab\tend", "é😀", "e\u0301", "\x0c\x1f\x7f", "a\ufeffb", "\u2028\x85x", "a\0b", "\0"],
)
@pytest.mark.parametrize("document", ["file", "passage"])
def test_a_text_is_kept_character_for_character(tmp_path, text, document):
    assert texts(written(tmp_path, text), document) == [text]


@given(LETTERS, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from(["", ".gz", ".zst"]))
@settings(deadline=None, max_examples=60)
def test_what_is_written_in_any_encoding_and_packed_comes_back(tmp_path_factory, text, encoding, packed):
    text = f"A beginning that is text.\n{text}"
    data = text.encode(encoding)
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed](data)
    path = written(tmp_path_factory.mktemp("a"), data, f"book.txt{packed}")
    assert texts(path, "file") == [text]


def test_only_the_mark_at_the_beginning_of_each_file_is_dropped(tmp_path):
    written(tmp_path, b"\xef\xbb\xbfone", "a.txt")
    written(tmp_path, b"\xef\xbb\xbf\xef\xbb\xbftwo", "b.txt")
    assert texts(tmp_path) == ["one", "\ufefftwo"]


def test_a_character_that_lies_across_two_blocks_is_one(tmp_path):
    text = "x" + "é" * 1_100_000 + "😀"
    assert texts(written(tmp_path, text), "file") == [text]
    assert texts(written(tmp_path, zstandard.compress(text.encode()), "b.zst"), "file") == [text]


def test_several_packed_parts_in_one_file_are_read_one_after_the_other(tmp_path):
    parts = [b"one\n", b"", b"two\n"]
    assert texts(written(tmp_path, b"".join(map(zstandard.compress, parts)), "a.zst")) == ["one\ntwo\n"]
    assert texts(written(tmp_path, b"".join(map(gzip.compress, parts)), "a.gz")) == ["one\ntwo\n"]


@pytest.mark.parametrize(
    ("data", "line", "byte", "offset"),
    [
        ("né".encode("latin-1"), 1, "0xe9", "1"),
        (b"one\ntwo\nx\xe9 tout", 3, "0xe9", "9"),
        (b"x\n" * 600_000 + b"\xe9", 600_001, "0xe9", "1,200,000"),
        ("\ufeffa\né".encode()[:-1], 2, "0xc3", "5"),
        (b"\xed\xa0\x80", 1, "0xed", "0"),
        (b"\xc0\xaf", 1, "0xc0", "0"),
        (b"\xff\xfea\0\n\0\0\xdc", 2, "0x00", "6"),
    ],
)
def test_a_byte_that_is_no_text_is_named_with_its_line_and_offset(tmp_path, data, line, byte, offset):
    path = written(tmp_path, data)
    said = f"^book.txt line {line}: not UTF-(8|16) text: byte {byte} at offset {offset}\\. Is it in another encoding\\?"
    with pytest.raises(BadRow, match=said):
        documents(path)
    with pytest.raises(BadRow, match=said):
        documents(path, "line")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "no text but a PDF: save its text first"),
        (b"PK\x03\x04\x14\0\6\0", "no text but a zip file (or .docx, .xlsx, .epub, .odt): unpack it"),
        (gzip.compress(b"text", mtime=0), "no text but gzip-packed: give its name the ending .gz"),
        (zstandard.compress(b"text"), "no text but zstd-packed: give its name the ending .zst"),
        (b"\x89PNG\r\n\x1a\n\0\0", "no text but a picture (PNG)"),
        (b"\x7fELF\2\1\1\0", "no text but a program (ELF)"),
        (b"PAR1\x15\4\x15", "no text but a parquet file: read it with data.source=parquet"),
        ("hello".encode("utf-16-le"), "UTF-16 without a byte order mark: convert it (`iconv -f UTF-16LE -t UTF-8`)"),
        ("hello".encode("utf-16-be"), "iconv -f UTF-16BE"),
        ("hello".encode("utf-32"), "UTF-32 text: convert it first"),
        (b"a\xff\0b", "looks like a binary file, not text (byte 0x00 at offset 2)"),
        (bytes(range(1, 9)) * 9, "looks like a binary file, not text (byte 0x01 at offset 0)"),
    ],
)
def test_what_is_no_text_is_told_by_how_it_begins(tmp_path, data, said):
    with pytest.raises(BadRow, match=f"^book.txt: .*{re.escape(said)}"):
        documents(written(tmp_path, data))
    skipped = Skipped()
    written(tmp_path, "good", "c.txt")
    assert texts(tmp_path, skipped=skipped) == ["good"]
    assert skipped.count == 1
    assert said in skipped.first[0]


@pytest.mark.parametrize("kind", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "changed", "not packed"])
def test_a_damaged_packed_file_is_named(tmp_path, kind, damage):
    text = "".join(f"{i * i}\n" for i in range(50_000)).encode()
    packed = gzip.compress(text) if kind == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(text)
    broken = packed[: len(packed) // 2] + b"\xff" * 9 + packed[len(packed) // 2 + 9 :]
    data = {"cut": packed[:-9], "changed": broken, "not packed": b"plain text"}[damage]
    path = written(tmp_path, data, f"book.txt{kind}")
    library = "gzip" if kind == ".gz" else "zstd"
    said = f"^book.txt{kind}: damaged, or not packed with {library} \\(.+\\): get the file again"
    with pytest.raises(BadRow, match=said):
        documents(path)


# -- lines and files -------------------------------------------------------------------------------


def test_a_line_is_a_document_without_its_end(tmp_path):
    found = documents(written(tmp_path, "one\r\n\n two\rx \nlast"), "line")
    assert [(one.text, one.where) for one in found] == [
        ("one", "book.txt line 1"),
        ("", "book.txt line 2"),
        (" two\rx ", "book.txt line 3"),
        ("last", "book.txt line 4"),
    ]


@given(LETTERS, st.lists(st.integers(0, 30), max_size=8))
@settings(deadline=None, max_examples=100)
def test_lines_are_the_same_however_the_text_comes(text, cuts):
    edges = [0, *sorted(cuts), len(text)]
    blocks = [text[a:b] for a, b in pairwise(edges)]
    assert list(lines(blocks, "x")) == (text.removesuffix("\n").split("\n") if text else [])


def test_a_file_is_a_document_named_by_its_path(tmp_path):
    (tmp_path / "sub").mkdir()
    written(tmp_path / "sub", "a\n\n" * 9_000, "a.txt")
    [found] = documents(tmp_path, "file")
    assert (found.text, found.where) == ("a\n\n" * 9_000, "sub/a.txt")


@pytest.mark.parametrize(
    ("document", "kept", "where"),
    [
        ("line", ["good", "fine"], "book.txt line 2: not UTF-8 text: byte 0xe9."),
        ("file", ["clean"], "book.txt line 2: not UTF-8 text: byte 0xe9."),
        ("passage", ["fine" * 2_000 + "\n", "clean"], "book.txt line 2: not UTF-8 text: byte 0xe9."),
    ],
)
def test_what_holds_bad_bytes_is_skipped_counted_and_named_when_asked(tmp_path, document, kept, where):
    size = 1 if document == "line" else 2_000
    written(tmp_path, b"good\n" + b"x\xe9" * size + b"\n\n" + b"fine" * size + b"\n")
    if document != "line":
        written(tmp_path, "clean", "c.txt")
    skipped = Skipped()
    assert [text for text in texts(tmp_path, document, skipped) if text] == kept
    assert skipped.count == 1
    assert skipped.first[0].startswith(where)
    assert "data.on_bad_row=skip leaves out" in skipped.first[0]


# -- passages --------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.sampled_from(["\n", "\n\n", " \n", "\r\n", "\t\n \n", " ", "word ", "a\n"]),
    st.builds(str.__mul__, st.sampled_from(["x", "é \n", "\n", " ", "a b\n"]), st.integers(1, 9_000)),
)
LONG_TEXTS = st.lists(PIECES, max_size=30).map("".join)


def cut(text):
    return [passage for _, passage in text_files.passages([text], "x")]


@given(LONG_TEXTS, LONG_TEXTS, st.lists(st.integers(0, 40_000), max_size=4))
@settings(deadline=None, max_examples=150)
def test_passages_are_the_text_and_what_is_added_changes_only_the_last(text, more, cuts):
    edges = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    blocks = [text[a:b] for a, b in pairwise(edges)]
    found = list(text_files.passages(blocks, "x"))
    parts = [passage for _, passage in found]
    assert "".join(parts) == text
    assert parts == cut(text), "the same however the text comes"
    assert cut(text + more)[: max(0, len(parts) - 1)] == parts[:-1]
    assert all(SHORTEST <= len(part) <= LONGEST * SHORTEST for part in parts[:-1])
    assert [line for line, _ in found] == [1 + "".join(parts[:i]).count("\n") for i in range(len(parts))]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a" * 2_000 + "\n\nb", 2_002),
        ("a" * 1_998 + "\n\nb", 2_000),
        ("a" * 1_997 + "\n\nb" + "c" * 3_000 + "\n\nd", 5_002),  # the first empty line is a character too early
        ("a" * 3_000 + "\r\n \t\r\n\r\n  b", 3_008),  # the run of empty lines stays with what it follows
        ("a" * 3_000 + "\n\n  ", 3_004),  # nothing follows: whether the last line is empty is not yet known
        ("a" * 100 + "\n" + "b" * 8_000 + "\nc\n\n", 8_102),
        (("a" * 99 + "\n") * 100, 8_000),
        ("a" * 70_000, LONGEST * SHORTEST),
        ("a" * 9_000, 9_000),
        ("\n" * 70_000, LONG * SHORTEST),
    ],
)
def test_a_passage_ends_at_an_empty_line_or_else_a_line_or_else_anywhere(text, end):
    assert passage_end(text, 0) == end


@given(st.text("ab\n ", max_size=300), st.text("ab\n ", max_size=300), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_a_short_file_has_several_passages_and_appending_moves_none(text, more, times):
    parts = [passage for _, passage in text_files.fine_passages([text * times], "x")]
    longer = [passage for _, passage in text_files.fine_passages([text * times + more], "x")]
    assert "".join(parts) == text * times
    assert longer[: max(0, len(parts) - 1)] == parts[:-1]
    assert len(parts) >= len(text * times) / (LONGEST * SHORTEST)


def test_a_file_of_its_own_is_cut_finer(tmp_path):
    text = "\n\n".join(f"Paragraph {i}: {'words ' * 30}" for i in range(60))
    path = written(tmp_path, text)
    files = find_files(str(path), "text")
    fine = [one.text for one in text_documents(files, "passage", alone=True)]
    assert "".join(fine) == text
    assert len(fine) > 3 * len(list(text_documents(files, "passage")))


def test_passages_say_where_they_begin(tmp_path):
    path = written(tmp_path, ("line\n" * 500 + "\n") * 3)
    assert [one.where for one in documents(path)] == [f"book.txt line {line}" for line in (1, 502, 1_003)]


# -- size ------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from utils.data.reading.text_files import find_files, text_documents
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def read(path, document): return sum(len(one.text) for one in text_documents(find_files(path, "text"), document))
import gzip, zstandard
read(sys.argv[1], "passage")
before = peak()
print(read(sys.argv[2], sys.argv[3]), peak() - before)
"""


@pytest.mark.parametrize(("ending", "document"), [("", "passage"), ("", "line"), (".gz", "passage"), (".zst", "line")])
def test_memory_does_not_grow_with_the_file(tmp_path, ending, document):
    block = ("A line of ordinary words, é and all, of no great length.\n" * 30 + "\n") * 600
    data, times = block.encode(), 100 if not ending else 50
    whole = {"": bytes, ".gz": lambda one: gzip.compress(one, 1), ".zst": zstandard.compress}[ending](data)
    with (tmp_path / f"big.txt{ending}").open("wb") as file:
        for _ in range(times):
            file.write(whole)
    small = written(tmp_path, "x" * 1_000, "small.txt")
    command = [sys.executable, "-c", PEAK, str(small), str(tmp_path / f"big.txt{ending}"), document]
    size, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    lost = block.count("\n") * times if document == "line" else 0
    assert int(size) == len(block) * times - lost
    assert len(data) * times > 50_000_000
    assert float(grown) < 25, f"{grown} MB more than for a small file"


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory():
    said = "^x line 3: longer than 67,108,864 characters: has the file lines"
    with pytest.raises(BadRow, match=said):
        list(lines(iter(["a\nb\n", *["c" * (1 << 24)] * 5]), "x"))


def test_blocks_are_read_as_they_are_asked_for(tmp_path):
    blocks = text_blocks(written(tmp_path, b"a" * (1 << 20) + b"\xff"), "x")
    assert len(next(blocks)) == 1 << 20
    with pytest.raises(BadRow, match="offset 1,048,576"):
        next(blocks)
