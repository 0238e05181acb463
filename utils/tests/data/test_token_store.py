"""Token ids are made once, read back whole or made again; real processes build, race and are killed."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from utils.config.schema import DataConfig
from utils.data.reading.sources import read_documents
from utils.data.reading.stories import story_nats
from utils.data.storing.token_store import open_store, store_at

ROOT = Path(__file__).parents[3]
REAL = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
TEXT = "".join(f"{i} é line of {i * 7919 % 1000} {i * 104729 % 997}\n" for i in range(300))
PARTS = [
    *(f"0-{side}/00000.{end}" for side in ("train", "val") for end in ("ids.bin", "docs.npy")),
    *("tokenizer.json", "tokenizer_config.json", "info.json"),
]
OPEN = """
import sys
from utils.config.schema import DataConfig
from utils.data.storing.token_store import open_store
print("ready", flush=True)
for path in map(str.strip, sys.stdin):
    try:
        store = open_store(DataConfig(tokenizer="char", source="text", path=path, document="line", seq_len=8))
        print(store.fingerprint, len(store.train), flush=True)
    except Exception as error:
        print(type(error).__name__, str(error)[:200], flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def config(tmp_path):
    return text_config(tmp_path / "book.txt", TEXT)


def text_config(path, text, **more):
    path.write_text(text, encoding="utf-8", newline="")
    settings = {"tokenizer": "char", "document": "line", "seq_len": 8, **more}
    return DataConfig(source="text", path=str(path), **settings)


def same(one, two):
    return (
        all(np.array_equal(one.side(side), two.side(side)) for side in ("train", "val", "test"))
        and one.fingerprint == two.fingerprint
        and one.tokenizer.fingerprint == two.tokenizer.fingerprint
        and one.entropy_floor == two.entropy_floor
        and one.bytes_per_token() == two.bytes_per_token()
    )


def files_of(store):
    return {
        path.relative_to(store.folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in store.folder.rglob("*")
        if path.is_file()
    }


# -- what is in it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_the_ids_are_those_of_the_text(config, kind):
    store = open_store(config.model_copy(update={"tokenizer": kind}))
    lines = [store.tokenizer.decode(side[:].tolist()).split("\n") for side in (store.train, store.val)]
    assert sorted(lines[0] + lines[1]) == sorted(TEXT.splitlines())
    assert [len(each) for each in lines] == [store.train.documents, store.val.documents]
    order = {line: i for i, line in enumerate(TEXT.splitlines())}
    assert all(each == sorted(each, key=order.get) for each in lines)  # as they were read
    assert store.train.dtype == store.val.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        store.train[:5][0] = 1
    assert store.info["train_characters"] == sum(map(len, lines[0]))
    assert store.info["val_characters"] == sum(map(len, lines[1]))
    assert store.bytes_per_token() == pytest.approx(len("".join(lines[1]).encode()) / len(store.val))
    assert store.entropy_floor is None
    assert len(store.test) == 0
    with pytest.raises(ValueError, match="has the sides train, val, test, and none called 'dev'"):
        store.side("dev")


def test_it_lies_in_the_cache_under_the_tokenizers_name(config, cache):
    store = open_store(config)
    assert store.folder.parent == cache / "tokens"
    assert store.folder.name.startswith("char-")
    assert sorted(files_of(store)) == sorted(PARTS)
    assert [path.name for path in store.folder.parent.iterdir()] == [store.folder.name]
    found = store_at(store.folder)
    assert found is not None
    assert same(found, store)
    assert store_at(cache) is None


def test_a_character_only_in_the_validation_text_is_unknown_there(tmp_path):
    (tmp_path / "val.txt").write_text("bbbbb\n")
    config = text_config(tmp_path / "a.txt", "a" * 95, val_from=str(tmp_path / "val.txt"))
    assert open_store(config).tokenizer.decode(open_store(config).val[:].tolist()) == "\ufffd" * 5


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_the_floor_is_the_nats_of_the_validation_text_over_its_predicted_tokens(kind):
    config = DataConfig(size=20_000, val_fraction=0.3, tokenizer=kind, seq_len=8)
    store = open_store(config)
    val, train = (document.text for document in read_documents(config))
    assert store.tokenizer.decode(store.train[:].tolist()) == train
    assert store.tokenizer.decode(store.val[:].tolist()) == val
    assert store.entropy_floor == pytest.approx(story_nats(val) / (len(store.val) - 1), rel=1e-12)
    assert 0.05 < store.entropy_floor < math.log(store.tokenizer.vocab_size)
    assert val.startswith("\n")  # the token that is never predicted says nothing


def test_many_different_characters_need_wider_ids(tmp_path):
    text = "".join(chr(i) for i in range(0x20, 0x12000) if not 0xD800 <= i < 0xE000 and chr(i).splitlines() == [chr(i)])
    (tmp_path / "val.txt").write_text("ab\n")
    store = open_store(text_config(tmp_path / "all.txt", text, val_from=str(tmp_path / "val.txt")))
    assert store.tokenizer.vocab_size > 1 << 16
    assert store.train.dtype == store.val.dtype == np.uint32
    assert np.asarray(store.train).max() > 65_535
    assert store.tokenizer.decode(store.train[:].tolist()) == text


def test_a_real_book():
    if not REAL.exists():
        pytest.skip("the plays of Shakespeare (shared/data/tinyshakespeare.txt) are not beside this repository")
    config = DataConfig(source="text", path=str(REAL), tokenizer="byte", separator="nothing", duplicates="ignore")
    store, text = open_store(config), REAL.read_bytes()
    found = [
        side.document(d).astype(np.uint8).tobytes() for side in (store.train, store.val) for d in range(side.documents)
    ]
    assert len(found) > 300
    assert sum(map(len, found)) == len(text)
    assert all(piece in text for piece in found)
    chars = open_store(config.model_copy(update={"tokenizer": "char", "split_by": "position"}))
    ids = [*chars.train[:].tolist(), *chars.val[:].tolist()]
    assert chars.tokenizer.decode(ids) == text.decode()
    assert 0.04 < len(chars.val) / len(ids) < 0.06


# -- made once -------------------------------------------------------------------------------------


def test_it_is_made_once(config):
    first = open_store(config)
    before = files_of(first)
    second = open_store(config.model_copy(update={"seq_len": 16, "packing": "blocks", "mask_fraction": 0.3}))
    assert files_of(second) == before
    assert same(first, second)


def test_another_text_tokenizer_or_split_is_another_store(config, tmp_path):
    more = text_config(tmp_path / "more.txt", TEXT + "x")
    changes = [{}, {"tokenizer": "byte"}, {"val_fraction": 0.2}, {"test_fraction": 0.2}, {"split_by": "position"},
               {"separator": "nothing"}, {"document": "passage", "val_from": config.path}]  # fmt: skip
    changes[-1] = {"max_documents": 200}
    stores = [open_store(config.model_copy(update=change)) for change in changes] + [open_store(more)]
    assert len({store.folder for store in stores}) == len({store.fingerprint for store in stores}) == 8


def test_the_fingerprint_is_that_of_the_content(config, tmp_path, monkeypatch):
    first = open_store(config)
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "other"))
    second = open_store(config)
    assert second.folder != first.folder
    assert same(first, second)
    assert (second.folder / "info.json").read_bytes() == (first.folder / "info.json").read_bytes()


def test_the_same_text_in_another_kind_of_file_has_the_same_fingerprint(config, tmp_path):
    import csv

    lines = TEXT.splitlines()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([line] for line in lines)])
    stores = [open_store(config)]
    stores += [
        open_store(config.model_copy(update={"source": kind, "path": str(tmp_path / f"a.{kind}")}))
        for kind in ("jsonl", "csv")
    ]
    assert len({store.folder for store in stores}) == 3
    assert len({store.fingerprint for store in stores}) == 1
    made_of = stores[1].info["made_of"]
    assert made_of["source"]["parts"][0]["source"] == "jsonl"
    assert made_of["split"]["val_fraction"] == config.val_fraction


# -- damaged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "remove", "longer"])
@pytest.mark.parametrize("name", PARTS)
def test_a_store_that_was_damaged_is_made_again(config, name, how):
    first = open_store(config)
    expected = (np.asarray(first.train), np.asarray(first.val), first.fingerprint)
    path = first.folder / name
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0 if how != "flip" else 1
        changed = {"flip": data, "cut": data[:-3], "empty": b"", "longer": data + b"xx"}[how]
        path.write_bytes(bytes(changed))
    second = open_store(config)
    assert np.array_equal(np.asarray(second.train), expected[0])
    assert np.array_equal(np.asarray(second.val), expected[1])
    assert second.fingerprint == expected[2]
    before = files_of(second)
    assert files_of(open_store(config)) == before  # now it is whole


@pytest.mark.parametrize("content", ["[]", "null", "7", '"text"', "{}", '{"format": 1, "files": []}'])
def test_an_info_of_another_form_is_made_again(config, content):
    first = open_store(config)
    (first.folder / "info.json").write_text(content)
    assert same(open_store(config), first)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "uint17"),
        ("dtype", "uint32"),
        ("dtype", "int16"),
        ("fingerprint", "0" * 64),
        ("val_nats", 1.0),
        ("val_bytes", 1),
        ("train_characters", 1),
        ("format", 0),
        ("files", {}),
        ("shards", {}),
        ("kind", "chat"),
    ],
)
def test_an_info_that_says_something_else_is_not_believed(key, value):
    config = DataConfig(tokenizer="char", size=5_000, val_fraction=0.3, seq_len=8)
    first = open_store(config)
    path = first.folder / "info.json"
    info = json.loads(path.read_text())
    holder = info["value"]
    assert holder[key] != value
    path.write_text(json.dumps(info | {"value": holder | {key: value}}))
    second = open_store(config)
    assert same(second, first)
    assert second.info == first.info


def test_what_killed_processes_left_is_removed_when_it_is_old(config, cache):
    import os

    tokens = cache / "tokens"
    for name, age in (("bpe-1.building", 2), ("bpe-2.building", 0.5), ("char-3.tmp-x", 2)):
        (tokens / name).mkdir(parents=True)
        (tokens / name / "00000.ids.bin").write_bytes(b"half")
        for path in (tokens / name / "00000.ids.bin", tokens / name):
            os.utime(path, (time.time() - age * 86_400,) * 2)
    store = open_store(config)
    assert {path.name for path in tokens.iterdir()} == {store.folder.name, "bpe-2.building"}


# -- several processes -----------------------------------------------------------------------------


def opener():
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_build_at_the_same_time_all_get_the_same_store(tmp_path, cache):
    processes = []
    try:
        processes += [opener() for _ in range(3)]
        for i in range(12):
            path = tmp_path / f"{i}.txt"
            path.write_text(f"{i}\n" + TEXT * 20, encoding="utf-8")
            for process in processes:
                process.stdin.write(f"{path}\n")
            for process in processes:
                process.stdin.flush()
            answers = [process.stdout.readline().split(" ", 1) for process in processes]
            mine = open_store(DataConfig(tokenizer="char", source="text", path=str(path), document="line", seq_len=8))
            assert answers == [[mine.fingerprint, f"{len(mine.train)}\n"]] * 3, (i, answers)
        assert len(list((cache / "tokens").iterdir())) == 12  # no locks, and nothing half made
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_process_killed_half_way_leaves_no_broken_store(tmp_path, cache):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"{i} {TEXT}"[:-1].replace("\n", "") + "\n" for i in range(300)), encoding="utf-8")
    process = opener()
    try:
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not list((cache / "tokens").glob("*.building")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert {name.suffix for name in (cache / "tokens").iterdir()} == {".building", ".lock"}
    store = open_store(
        DataConfig(tokenizer="char", source="text", path=str(path), document="line", duplicates="ignore", seq_len=8)
    )
    assert store.train.documents + store.val.documents == 300


# -- too short -------------------------------------------------------------------------------------


def short(tmp_path, train, val, **more):
    (tmp_path / "val.txt").write_text(val)
    return text_config(tmp_path / "a.txt", train, val_from=str(tmp_path / "val.txt"), **more)


def test_a_text_shorter_than_one_example_says_how_short(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"^the training text has 95 tokens and one example needs data\.seq_len \+ 1 = 501: "
        r"lower data\.seq_len to 47 or less, or add text$",
    ):
        open_store(short(tmp_path, "a" * 95, "b" * 5, seq_len=500))


def test_one_example_is_enough(tmp_path):
    config = short(tmp_path, "a" * 95, "b" * 5, seq_len=94)
    assert len(open_store(config).train) == 95
    with pytest.raises(ValueError, match="has 95 tokens"):
        open_store(config.model_copy(update={"seq_len": 95}))
    assert len(open_store(config.model_copy(update={"seq_len": 95, "packing": "documents"})).train) == 95


def test_a_validation_text_of_one_token_is_too_short(tmp_path):
    text = "^the validation text has 1 tokens and needs at least 2: raise data.val_fraction or add text$"
    with pytest.raises(ValueError, match=text):
        open_store(short(tmp_path, "ab" * 50, "a"))


def test_one_document_alone_cannot_be_split(tmp_path):
    config = text_config(tmp_path / "a.txt", "hello world", seq_len=2)
    with pytest.raises(ValueError, match="there is only one document"):
        open_store(config)


def test_a_text_that_cannot_be_used_leaves_nothing_in_the_cache(tmp_path, cache):
    (tmp_path / "a.txt").write_bytes(b"text\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        open_store(DataConfig(tokenizer="char", source="text", path=str(tmp_path / "a.txt")))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_store(DataConfig(tokenizer="char", source="text", path=str(tmp_path / "none.txt")))
    assert not list((cache / "tokens").iterdir())


def test_a_cache_that_cannot_be_written_says_which(config, cache, monkeypatch):
    cache.write_text("a file")
    with pytest.raises(ValueError, match=r"^the cache .*cache/tokens cannot be written \(.*\): set TBT_CACHE$"):
        open_store(config)
    monkeypatch.setenv("TBT_CACHE", "/proc/nowhere")
    with pytest.raises(ValueError, match=r"the cache /proc/nowhere/tokens cannot be written \(.*\): set TBT_CACHE"):
        open_store(config)
