"""Text that changes while it is read, stores that somebody else wrote, odd files: an error or the right ids."""

import json
import os
from pathlib import Path

import pytest

from utils.config.schema import DataConfig
from utils.data.documents import Skipped
from utils.data.reading.sources import read_documents
from utils.data.storing import build_store
from utils.data.storing.run_store import remembered_store
from utils.data.storing.shards import INFO, read_info, write_json
from utils.data.storing.token_store import open_store
from utils.runs.folder import RunFolder
from utils.runtime.files import sha256_file

TEXT = "".join(f"line {i} says {i * i}\n" for i in range(300))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lines(path, **more):
    path.write_text(TEXT)
    return DataConfig(source="text", path=str(path), document="line", tokenizer="byte", seq_len=64, **more)


# ---- The text is another one by now ----


@pytest.mark.parametrize("step", ["survey_of", "tokenizer_for", "separator_of"])
@pytest.mark.parametrize("other", [TEXT.replace("says", "SAYS"), TEXT + "more\n", TEXT[:-1]])
def test_a_store_never_holds_another_text_than_it_is_named_after(tmp_path, monkeypatch, step, other):
    path = tmp_path / "a.txt"
    config, real = lines(path), getattr(build_store, step)

    def changes(*given):
        path.write_text(other)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(build_store, step, changes)
        with pytest.raises(ValueError, match="the text changed while it was read: run it again. Copy it first"):
            open_store(config)
    path.write_text(TEXT)  # and what was found out is not taken for this one's
    store = open_store(config)
    text = "".join(store.tokenizer.decode(store.side(side)[:].tolist()) + "\n" for side in ("train", "val"))
    assert sorted(text.splitlines()) == sorted(TEXT.splitlines())


def test_a_hook_that_gives_something_else_each_time_is_noticed_and_can_be_mended(tmp_path):
    config = lines(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="a data.hook must make the same of the same text each time"):
        open_store(config.model_copy(update={"hook": _random_hook(tmp_path)}))
    assert not list((tmp_path / "cache" / "tokens").glob("*"))


def _random_hook(folder: Path) -> str:
    path = folder / "shuffle.py"
    path.write_text("import os\ndef keep(document):\n    document['text'] = os.urandom(8).hex()\n    return document\n")
    return f"{path}:keep"


def test_a_build_that_is_gone_on_with_after_days_is_not_thrown_away_first(tmp_path):
    store = open_store(lines(tmp_path / "a.txt"))
    building = store.folder.with_name(f"{store.folder.name}.building")
    store.folder.rename(building)  # killed just before its last step
    info = (building / INFO).stat().st_ino
    for path in (building, *building.rglob("*")):
        os.utime(path, (0, 0))
    again = open_store(lines(tmp_path / "a.txt"))
    assert (again.folder / INFO).stat().st_ino == info


# ---- Stores that somebody else wrote ----


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["/dev/zero", "../../outside", "pipe", "link", "linked/file"])
def test_a_store_of_other_than_its_own_plain_files_is_none(tmp_path, name):
    folder, outside = tmp_path / "cache" / "store", tmp_path / "outside"
    folder.mkdir(parents=True)
    outside.write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("secret")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "own").write_text("secret")
    digest = sha256_file(outside)
    write_json(folder / INFO, {"format": 2, "files": {"own": digest}})
    assert read_info(folder)
    write_json(folder / INFO, {"format": 2, "files": {"own": digest, name: digest}})
    assert read_info(folder) is None


@pytest.mark.timeout(20)
def test_a_store_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / INFO).write_text('{"value":' + "[" * 200_000)
    assert read_info(tmp_path) is None
    write_json(tmp_path / INFO, {"format": 2, "files": {"a\0b": ""}})
    assert read_info(tmp_path) is None
    (tmp_path / INFO).unlink()
    os.mkfifo(tmp_path / INFO)
    assert read_info(tmp_path) is None


def test_a_store_in_a_runs_own_folder_is_not_opened(tmp_path):
    run = RunFolder(tmp_path / "run")
    store = open_store(lines(tmp_path / "a.txt"))
    run.path.mkdir()
    noted = {"store": str(store.folder), "fingerprint": store.fingerprint}
    (run.path / "data.json").write_text(json.dumps(noted))
    found = remembered_store(run)
    assert found
    assert found.fingerprint == store.fingerprint
    inside = run.path / "store"
    store.folder.rename(inside)
    (run.path / "data.json").write_text(json.dumps({**noted, "store": str(inside)}))
    assert remembered_store(run) is None
    for name in ("a\0b", "\ud800", "x" * 5000):
        (run.path / "data.json").write_text(json.dumps({**noted, "store": name}))
        assert remembered_store(run) is None


# ---- Odd files ----


def test_a_file_name_may_be_any_bytes(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in (b"a\nb.txt", b"c\xff.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(TEXT.replace("line", name.hex()))
    config = DataConfig(source="text", path=str(folder), document="line", tokenizer="byte", seq_len=64)
    assert len(open_store(config).train)
    where = {document.where.partition(" line ")[0] for document in read_documents(config)}
    assert where == {"a\nb.txt", "c\\xff.txt"}


def test_a_pattern_that_goes_round_a_link_reads_each_file_once(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    (tmp_path / "texts" / "round").symlink_to(tmp_path / "texts")
    config = DataConfig(source="text", path=f"{tmp_path}/texts/**/*.txt")
    assert [(document.where, document.text) for document in read_documents(config)] == [("a.txt line 1", "hello")]


@pytest.mark.timeout(20)
def test_a_csv_may_have_very_many_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",".join(["text", *map("c{}".format, range(100_000))]) + "\nhello" + ",1" * 100_000 + "\n")
    assert [document.text for document in read_documents(DataConfig(source="csv", path=str(path)))] == ["hello"]


def test_not_a_number_is_no_class(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": NaN}\n{"text": "b", "label": 2.0}\n')
    config = DataConfig(source="jsonl", path=str(path), task="classification", on_bad_row="skip")
    skipped = Skipped()
    assert [document.label for document in read_documents(config, skipped)] == ["2"]
    assert "column label holds the number nan, not a class" in skipped.first[0]


@pytest.mark.parametrize("damage", ["flip", "bad", "gone"])
def test_a_tokenizer_damaged_in_a_killed_build_is_made_again(tmp_path, monkeypatch, damage):
    config = lines(tmp_path / "a.txt").model_copy(update={"tokenizer": "char"})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_store, "separator_of", killed)
        with pytest.raises(KeyboardInterrupt):
            open_store(config)
    path = next((tmp_path / "cache" / "tokens").glob("*.building")) / "tokenizer.json"
    words = path.read_text()
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(words.replace('"s"', '"S"') if damage == "flip" else words[:-9])
    store = open_store(config)
    assert (store.folder / "tokenizer.json").read_text() == words
    assert store.tokenizer.decode(store.train[:].tolist()).startswith("line ")
