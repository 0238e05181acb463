"""Token ids are made once, read back whole or made again; real processes build, race and are killed."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from utils.config.schema import DataConfig
from utils.data.sources import load_corpus
from utils.data.stories import story_nats
from utils.data.token_store import open_store

ROOT = Path(__file__).parents[3]
REAL = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
TEXT = "".join(f"{i} é line\n" for i in range(300))
PARTS = ["train.bin", "val.bin", "tokenizer.json", "info.json"]
OPEN = """
import sys
from utils.config.schema import DataConfig
from utils.data.token_store import open_store
print("ready", flush=True)
for path in map(str.strip, sys.stdin):
    try:
        store = open_store(DataConfig(tokenizer="char", source="text", path=path, seq_len=8))
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
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    return DataConfig(tokenizer="char", source="text", path=str(tmp_path / "book.txt"), seq_len=8)


def text_config(path, text, **more):
    path.write_text(text, encoding="utf-8", newline="")
    return DataConfig(source="text", path=str(path), **{"tokenizer": "char", "seq_len": 8, **more})


def same(one, two):
    return (
        np.array_equal(one.train, two.train)
        and np.array_equal(one.val, two.val)
        and one.fingerprint == two.fingerprint
        and one.tokenizer.fingerprint == two.tokenizer.fingerprint
        and one.entropy_floor == two.entropy_floor
        and one.bytes_per_token() == two.bytes_per_token()
    )


def files_of(store):
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in store.folder.iterdir()}


# -- what is in it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_the_ids_are_those_of_the_text(config, kind):
    config = config.model_copy(update={"tokenizer": kind})
    store, corpus = open_store(config), load_corpus(config)
    assert store.train.tolist() == store.tokenizer.encode(corpus.train)
    assert store.tokenizer.decode(store.train.tolist()) + store.tokenizer.decode(store.val.tolist()) == TEXT
    assert isinstance(store.train, np.memmap)
    assert not store.train.flags.writeable
    assert store.train.dtype == store.val.dtype == np.uint16
    assert store.info["train_characters"] == len(corpus.train)
    assert store.info["val_characters"] == len(corpus.val)
    assert store.bytes_per_token() == pytest.approx(len(corpus.val.encode()) / len(store.val))
    assert store.entropy_floor is None


def test_it_lies_in_the_cache_under_the_tokenizers_name(config, cache):
    store = open_store(config)
    assert store.folder.parent == cache / "tokens"
    assert store.folder.name.startswith("char-")
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(PARTS)
    assert [path.name for path in store.folder.parent.iterdir()] == [store.folder.name]


def test_a_character_only_in_the_validation_text_is_unknown_there(tmp_path):
    store = open_store(text_config(tmp_path / "a.txt", "a" * 95 + "bbbbb", val_fraction=0.05))
    assert store.tokenizer.decode(store.val.tolist()) == "\ufffd" * 5


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_the_floor_is_the_nats_of_the_validation_text_over_its_predicted_tokens(kind):
    config = DataConfig(size=20_000, val_fraction=0.3, tokenizer=kind, seq_len=8)
    store, corpus = open_store(config), load_corpus(config)
    assert store.entropy_floor == pytest.approx(story_nats(corpus.val) / (len(store.val) - 1), rel=1e-12)
    assert 0.05 < store.entropy_floor < math.log(store.tokenizer.vocab_size)
    assert corpus.val.startswith("\n")  # the token that is never predicted says nothing


def test_many_different_characters_need_wider_ids(tmp_path):
    text = "".join(chr(i) for i in range(0x20, 0x12000) if not 0xD800 <= i < 0xE000)
    store = open_store(text_config(tmp_path / "all.txt", text))
    assert store.tokenizer.vocab_size > 1 << 16
    assert store.train.dtype == store.val.dtype == np.uint32
    assert store.train.max() > 65_535
    assert store.tokenizer.decode(store.train.tolist()) == text[: len(store.train)]


def test_a_real_book(cache):
    if not REAL.exists():
        pytest.skip("the plays of Shakespeare (shared/data/tinyshakespeare.txt) are not beside this repository")
    data = REAL.read_bytes()
    store = open_store(DataConfig(source="text", path=str(REAL), tokenizer="byte"))
    assert store.train.astype(np.uint8).tobytes() + store.val.astype(np.uint8).tobytes() == data
    chars = open_store(DataConfig(source="text", path=str(REAL), tokenizer="char"))
    assert chars.tokenizer.vocab_size == len(set(data)) + 1
    assert len(chars.train) + len(chars.val) == len(data)
    assert chars.tokenizer.decode(chars.val[:1_000].tolist()) == data[len(chars.train) :][:1_000].decode()


# -- made once -------------------------------------------------------------------------------------


def test_it_is_made_once(config):
    first = open_store(config)
    before = files_of(first)
    second = open_store(config.model_copy(update={"seq_len": 16, "seed": 3}))
    assert files_of(second) == before
    assert same(first, second)


def test_another_text_tokenizer_or_share_is_another_store(config, tmp_path):
    more = text_config(tmp_path / "more.txt", TEXT + "x")
    changes = [{}, {"tokenizer": "byte"}, {"val_fraction": 0.1}]
    stores = [open_store(config.model_copy(update=change)) for change in changes] + [open_store(more)]
    assert len({store.folder for store in stores}) == 4
    assert len({store.fingerprint for store in stores}) == 4


def test_the_fingerprint_is_that_of_the_content(config, tmp_path, monkeypatch):
    first = open_store(config)
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "other"))
    second = open_store(config)
    assert second.folder != first.folder
    assert same(first, second)


# -- damaged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "remove", "longer"])
@pytest.mark.parametrize("name", PARTS)
def test_a_store_that_was_damaged_is_made_again(config, name, how):
    first = open_store(config)
    expected = (np.array(first.train), np.array(first.val), first.fingerprint)
    path = first.folder / name
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    else:
        data[5] ^= 0 if how != "flip" else 1
        changed = {"flip": data, "cut": data[:-3], "empty": b"", "longer": data + b"xx"}[how]
        path.write_bytes(bytes(changed))
    second = open_store(config)
    assert np.array_equal(second.train, expected[0])
    assert np.array_equal(second.val, expected[1])
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
        ("fingerprint", "0" * 67),
        ("val_nats", 1.0),
        ("val_bytes", 1),
        ("train_characters", 1),
        ("format", 0),
        ("files", {}),
    ],
)
def test_an_info_that_says_something_else_is_not_believed(key, value):
    config = DataConfig(tokenizer="char", size=5_000, val_fraction=0.3, seq_len=8)
    first = open_store(config)
    path = first.folder / "info.json"
    info = json.loads(path.read_text())
    holder = info if key in info else info["info"]
    assert holder[key] != value
    path.write_text(json.dumps(info | {key: value} if holder is info else info | {"info": holder | {key: value}}))
    second = open_store(config)
    assert same(second, first)
    assert second.info == first.info


def test_what_a_killed_process_left_does_no_harm(config, cache):
    first = open_store(config)
    stale = cache / "tokens" / f"{first.folder.name}.tmp-stale"
    stale.mkdir()
    (stale / "train.bin").write_bytes(b"half")
    before = files_of(first)
    assert files_of(open_store(config)) == before
    for path in first.folder.iterdir():
        path.unlink()
    assert len(open_store(config).train) > 0


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
            mine = open_store(DataConfig(tokenizer="char", source="text", path=str(path), seq_len=8))
            assert answers == [[mine.fingerprint, f"{len(mine.train)}\n"]] * 3, (i, answers)
        assert not [path for path in (cache / "tokens").iterdir() if ".tmp-" in path.name]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_process_killed_half_way_leaves_no_broken_store(tmp_path, cache):
    path = tmp_path / "book.txt"
    path.write_text(TEXT * 300, encoding="utf-8")  # about a megabyte: a second of work
    process = opener()
    try:
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not list((cache / "tokens").glob("*.tmp-*")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    (left,) = (cache / "tokens").iterdir()
    assert ".tmp-" in left.name
    store = open_store(DataConfig(tokenizer="char", source="text", path=str(path), seq_len=8))
    assert len(store.train) + len(store.val) == len(TEXT) * 300
    assert store.tokenizer.decode(store.train[:1_000].tolist()) == (TEXT * 300)[:1_000]


# -- too short -------------------------------------------------------------------------------------


def test_a_text_shorter_than_one_example_says_how_short(tmp_path):
    config = text_config(tmp_path / "a.txt", "ab" * 50, seq_len=500)
    with pytest.raises(
        ValueError,
        match=r"^the training text has 95 tokens and one example needs data\.seq_len \+ 1 = 501: "
        r"lower data\.seq_len to 47 or less, or add text$",
    ):
        open_store(config)


def test_one_example_is_enough(tmp_path):
    config = text_config(tmp_path / "a.txt", "ab" * 50, seq_len=94)
    assert len(open_store(config).train) == 95
    with pytest.raises(ValueError, match="has 95 tokens"):
        open_store(config.model_copy(update={"seq_len": 95}))


def test_a_validation_text_of_one_token_is_too_short(tmp_path):
    config = text_config(tmp_path / "a.txt", "ab" * 50, val_fraction=0.01)
    text = "^the validation text has 1 tokens and needs at least 2: raise data.val_fraction or add text$"
    with pytest.raises(ValueError, match=text):
        open_store(config)


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.01, "the validation text has 0 tokens"), (0.99, "the training text")]
)
def test_a_part_without_any_token_is_too_short_not_a_failing_disk(tmp_path, fraction, text):
    config = text_config(tmp_path / "a.txt", "hello world", val_fraction=fraction, seq_len=2)
    with pytest.raises(ValueError, match=text):
        open_store(config)


def test_stories_with_hardly_any_validation_text_are_too_short():
    with pytest.raises(ValueError, match="the validation text has 0 tokens"):
        open_store(DataConfig(tokenizer="char", size=1_000, val_fraction=0.0001, seq_len=8))


def test_a_text_that_cannot_be_used_leaves_nothing_in_the_cache(tmp_path, cache):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        open_store(DataConfig(tokenizer="char", source="text", path=str(tmp_path / "a.txt")))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_store(DataConfig(tokenizer="char", source="text", path=str(tmp_path / "none.txt")))
    assert not os.path.exists(cache)
