"""Texts that come by hand are kept whole, under safe names, with settings that read them back."""

import json
import os
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config.load import load_config
from utils.data.reading.collect import safe_name, save_texts, save_uploads, settings_for, settings_of, unpack
from utils.data.reading.sources import read_documents

ROWS = st.one_of(st.text(), st.dictionaries(st.text(), st.none() | st.integers() | st.text(), min_size=1))


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_list_becomes_documents(tmp_path: Path):
    texts = ["one\n\n two", "é🙂\0\u2028\r\n", "  three "]
    words = save_texts(texts, tmp_path / "new" / "mine.jsonl")
    assert words == ["data.source=jsonl", f"data.path={tmp_path / 'new' / 'mine.jsonl'}"]
    config = load_config("quickstart", overrides=words)
    assert [document.text for document in read_documents(config.data)] == texts
    assert names(tmp_path) == ["new/mine.jsonl"]
    pairs = save_texts(({"prompt": f"{i}?", "answer": f"{i}!"} for i in range(3)), tmp_path / "pairs.jsonl")
    found = list(read_documents(load_config("quickstart", overrides=pairs).data))
    assert [(one.text, one.target) for one in found] == [("0?", "0!"), ("1?", "1!"), ("2?", "2!")]


@settings(deadline=None, max_examples=50)
@given(st.lists(ROWS, min_size=1, max_size=5))
def test_every_value_comes_back(rows: list):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        save_texts(rows, path)
        lines = path.read_bytes().decode().split("\n")
        assert lines.pop() == ""
        assert [json.loads(line) for line in lines] == [{"text": row} if isinstance(row, str) else row for row in rows]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts is empty"),
        ("one text", r"texts is one str: give a list of them, such as \[text\]"),
        (["a", 3], r"texts\[1\] is int '3': each must be a str, or a dict"),
        (["a", None], r"texts\[1\] is NoneType 'None'"),
        ([{}], r"texts\[0\] is an empty dict"),
        (["a", "b", b"c"], r"texts\[2\] is bytes"),
        ([{1: "a"}], r"texts\[0\] has the key 1: the names of columns are str"),
        ([{"a": {1, 2}}], r"texts\[0\] holds what JSON cannot: .*set"),
        ([{"a": float("nan")}], r"texts\[0\] holds what JSON cannot"),
        (["ok", "half \ud83d"], r"texts\[1\] holds '\\ud83d', half a character"),
    ],
)
def test_what_is_no_text_is_named_and_an_older_file_stays(tmp_path: Path, texts, message: str):
    path = tmp_path / "mine.jsonl"
    save_texts(["old"], path)
    with pytest.raises(ValueError, match=message):
        save_texts(texts, path)
    assert path.read_text() == '{"text": "old"}\n'
    assert names(tmp_path) == ["mine.jsonl"]


@pytest.mark.parametrize(
    ("name", "source"),
    [("a.txt", "text"), ("a.MD", "text"), ("a.csv", "csv"), ("a.tsv.gz", "csv"), ("b.jsonl.zst", "jsonl"),
     ("a.json", "jsonl"), ("x.y.parquet", "parquet")],
)  # fmt: skip
def test_endings_say_what_a_file_is(tmp_path: Path, name: str, source: str):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".hidden.bin").write_bytes(b"x")
    assert settings_for(tmp_path / name) == [f"data.source={source}", f"data.path={tmp_path / name}"]
    assert settings_for(tmp_path) == [f"data.source={source}", f"data.path={tmp_path}"]


def test_what_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        settings_for(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no file to learn from; those that end in .txt"):
        settings_for(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a.pdf: files that end in .pdf are not read"):
        settings_for(tmp_path / "a.pdf")
    (tmp_path / "a.txt").write_bytes(b"x")
    (tmp_path / "b.csv").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"files of several kinds: text \(a.txt\), csv \(b.csv\): keep one kind"):
        settings_for(tmp_path)


def test_a_zip_is_unpacked_into_its_folder(tmp_path: Path):
    files = {"deep/one.txt": b"1", "two.md": b"2", "photo.jpg": b"x", "__MACOSX/._one.txt": b"x", ".x.txt": b"x"}
    words = settings_for(zipped(tmp_path / "books.zip", files))
    assert words == ["data.source=text", f"data.path={tmp_path / 'books'}"]
    assert names(tmp_path) == ["books.zip", "books/deep/one.txt", "books/two.md"]
    zipped(tmp_path / "books.zip", {"three.txt": b"3"})
    settings_for(tmp_path / "books.zip")
    assert names(tmp_path) == ["books.zip", "books/three.txt"]


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_a_zip_writes_nothing_outside(tmp_path: Path, name: str):
    (tmp_path / "in").mkdir()
    path = zipped(tmp_path / "in" / "books.zip", {name: b"x"})
    with pytest.raises(ValueError, match="outside of its folder, is not unpacked"):
        unpack(path)
    assert names(tmp_path) == ["in/books.zip"]
    assert sorted(os.listdir(tmp_path)) == ["in"]
    assert os.listdir(tmp_path / "in") == ["books.zip"]


def test_a_zip_that_is_too_much_damaged_or_of_no_use(tmp_path: Path):
    bomb = zipped(tmp_path / "bomb.zip", {"a.txt": bytes(1_000_000), "b.txt": bytes(1_000_000)})
    with pytest.raises(ValueError, match="unpacks to more than 1,500,000 bytes"):
        unpack(bomb, 1_500_000)
    good = zipped(tmp_path / "good.zip", {"a.txt": os.urandom(5_000)}).read_bytes()
    for bad in (b"no zip", good[:2_000], good[:1_000] + bytes(2_000) + good[3_000:]):
        (tmp_path / "bad.zip").write_bytes(bad)
        with pytest.raises(ValueError, match="is damaged, or no zip"):
            unpack(tmp_path / "bad.zip")
    with pytest.raises(ValueError, match="holds no file to learn from"):
        unpack(zipped(tmp_path / "none.zip", {"a.exe": b"x"}))
    with pytest.raises(ValueError, match="holds the same name twice: a_b.txt"):
        unpack(zipped(tmp_path / "twice.zip", {"a?b.txt": b"x", "a*b.txt": b"x"}))
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ValueError, match="which is a file: rename one of them"):
        unpack(zipped(tmp_path / "file.zip", {"a.txt": b"x"}))
    assert names(tmp_path) == sorted(["bomb.zip", "bad.zip", "good.zip", "none.zip", "twice.zip", "file", "file.zip"])


def test_uploads_are_kept_under_safe_names(tmp_path: Path):
    files = [("../../a b.txt", b"1"), ("C:\\x\\.hidden.txt", b"2"), ("né🙂|.md", b"3")]
    kept = save_uploads(files, tmp_path / "data")
    assert [path.name for path in kept] == ["a b.txt", "hidden.txt", "né__.md"]
    assert settings_of(kept, tmp_path / "data") == ["data.source=text", f"data.path={tmp_path / 'data'}"]
    assert settings_of(kept[:1], tmp_path / "data")[1] == f"data.path={kept[0]}"
    assert save_uploads([("a b.txt", b"new")], tmp_path / "data")[0].read_bytes() == b"new"
    assert len(names(tmp_path)) == 3
    for files, message in (
        ([("a.txt", b"1"), ("x.exe", b"2")], "x.exe: files of this ending are not read"),
        ([("n.txt", b"1"), ("d/n.txt", b"2")], "two files are called n.txt"),
    ):
        with pytest.raises(ValueError, match=message):
            save_uploads(files, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300))
def test_a_safe_name_is_one_name_in_the_folder(name: str):
    safe = safe_name(name)
    assert safe == safe_name(safe)
    assert 0 < len(safe.encode()) <= 255
    assert not safe.startswith(".")
    assert not set(safe) & set('/\\\0"*?<>|:\n')
