"""Every source gives its documents in one order; its key changes with whatever decides them, and with nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from utils.config.schema import DataConfig, MixturePart
from utils.data.documents import Skipped
from utils.data.reading.sources import (
    VAL_STORIES,
    floor_nats,
    parts_of,
    pin,
    prepare_source,
    read_documents,
    source_key,
)
from utils.data.reading.stories import read_stories, story_nats, write_stories
from utils.tests.data.dataset_server import DatasetHub

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"


def text_config(path, **more):
    return DataConfig(source="text", path=str(path), **more)


def texts(config, skipped=None):
    return [one.text for one in read_documents(config, skipped)]


# -- documents -------------------------------------------------------------------------------------


def test_fixed_sides_come_first_then_the_others_part_by_part(tmp_path):
    for name in ("train.txt", "val.txt", "test.txt"):
        (tmp_path / name).write_text(f"{name} 1\n{name} 2\n{name} 3\n")
    places = {"val_from": f"{tmp_path}/val.txt", "test_from": f"{tmp_path}/test.txt"}
    config = text_config(tmp_path / "train.txt", document="line", max_documents=2, **places)
    assert [(one.text, one.side, one.part) for one in read_documents(config)] == [
        (f"{name}.txt {i}", side, 0) for name, side in (("val", "val"), ("test", "test"), ("train", "")) for i in (1, 2)
    ]


def test_the_parts_of_a_mixture_are_numbered_and_may_hold_the_stories(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n{"text": "five"}\n{"text": "six"}\n')
    parts = [
        MixturePart(source="text", path=f"{tmp_path}/a.txt", document="line"),
        MixturePart(source="stories"),
        MixturePart(source="jsonl", path=f"{tmp_path}/b.jsonl", weight=3),
    ]
    config = DataConfig(mixture=parts, size=5_000, max_documents=2)
    found = [(one.part, one.side, one.text[:5].strip()) for one in read_documents(config)]
    assert [one[:2] for one in found] == [(1, "val"), (0, ""), (0, ""), (1, "train"), (2, ""), (2, "")]
    assert [text for part, _, text in found if part != 1] == ["one", "two", "four", "five"]
    assert parts_of(config) == parts
    keys = {
        json.dumps(source_key(config.model_copy(update={"mixture": some}))) for some in (parts, parts[::-1], parts[:2])
    }
    assert len(keys) == 3


@pytest.mark.parametrize("content", ["", " \n\t\r\n ", "\ufeff", "\ufeff\n", "\u3000"])
def test_a_source_without_text_is_empty(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content, encoding="utf-8")
    said = f"^data.path={tmp_path}/empty.txt is empty: there is no text to learn from$"
    with pytest.raises(ValueError, match=said):
        texts(text_config(tmp_path / "empty.txt"))
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(ValueError, match=f"^data.test_from={tmp_path}/empty.txt is empty"):
        texts(text_config(tmp_path / "good.txt", test_from=f"{tmp_path}/empty.txt"))


def test_a_source_of_bad_rows_alone_says_how_it_came_to_be_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    config = DataConfig(source="jsonl", path=f"{tmp_path}/a.jsonl", on_bad_row="skip", text_field="text")
    said = (
        r"is empty: there is no text to learn from \(2 bad rows were left out; the first: a.jsonl line 1: column text"
    )
    with pytest.raises(ValueError, match=said):
        texts(config)


def test_bad_rows_are_counted_only_when_asked(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe9d\nfine\n")
    config = text_config(tmp_path / "a.txt", document="line", on_bad_row="skip")
    skipped = Skipped()
    assert texts(config, skipped) == texts(config) == ["good", "fine"]
    assert skipped.count == 1
    with pytest.raises(ValueError, match="^a.txt line 2: not UTF-8 text: byte 0xe9 at offset 6"):
        texts(config.model_copy(update={"on_bad_row": "stop"}), Skipped())


def test_white_space_between_documents_is_a_document_too(tmp_path):
    (tmp_path / "a.txt").write_text("a\n\n \nb")
    assert texts(text_config(tmp_path / "a.txt", document="line")) == ["a", "", " ", "b"]


def test_a_dataset_of_the_hub_may_be_validated_on_files(tmp_path):
    (tmp_path / "val.jsonl").write_text('{"text": "mine"}\n')
    config = DataConfig(source="hub", name="owner/set", val_from=f"{tmp_path}/val.jsonl", revision="a" * 40)
    documents = read_documents(config)
    first = next(documents)
    assert (first.text, first.side, first.where) == ("mine", "val", "val.jsonl line 1")
    assert len(source_key(config)["parts"][0]["val_from"]) == 64


# -- the same text through every door --------------------------------------------------------------


def test_wikitext_is_the_same_through_every_door(tmp_path):
    source = SHARED / "wikitext2-test.txt"
    if not source.exists():
        pytest.skip("needs ../shared/data")
    wanted = texts(text_config(source, document="line"))
    assert len(wanted) > 2_000
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in wanted))
    (tmp_path / "a.csv").write_text("text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in wanted))
    parquet.write_table(pyarrow.table({"text": wanted}), tmp_path / "a.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        assert texts(DataConfig(source=kind, path=f"{tmp_path}/a.{kind}")) == wanted
    assert "".join(texts(text_config(source))) == source.read_text()


# -- key -------------------------------------------------------------------------------------------


def test_the_key_knows_what_decides_documents_and_nothing_else(tmp_path):
    path, copy = tmp_path / "a.txt", tmp_path / "elsewhere.txt"
    path.write_bytes(b"some text")
    copy.write_bytes(b"some text")
    key = source_key(text_config(path))
    assert json.loads(json.dumps(key)) == key
    assert source_key(text_config(copy)) == key
    assert source_key(text_config(path, seed=3, size=5_000, tokenizer="byte", seq_len=7, val_fraction=0.06)) == key
    assert source_key(text_config(path, split_by="position", duplicates="drop", test_fraction=0.1)) == key
    for more in ({"document": "line"}, {"max_documents": 3}, {"on_bad_row": "skip"}, {"val_from": str(copy)}):
        assert source_key(text_config(path, **more)) != key
    path.write_bytes(b"some texu")
    assert source_key(text_config(path)) != key


def test_the_key_of_a_table_knows_its_columns_and_whether_a_class_is_learned(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    config = DataConfig(source="csv", path=f"{tmp_path}/a.csv")
    changes = [
        {},
        {"text_field": "text"},
        {"target_field": "label"},
        {"label_field": "label"},
        {"task": "classification"},
    ]
    assert len({json.dumps(source_key(config.model_copy(update=change))) for change in changes}) == 5
    assert source_key(config.model_copy(update={"task": "masked", "document": "line"})) == source_key(config)


def test_the_key_of_a_folder_goes_with_it_and_knows_where_files_begin(tmp_path):
    keys = set()
    for i, parts in enumerate([("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab")]):
        folder = tmp_path / str(i) / "sub"
        folder.mkdir(parents=True)
        for j, part in enumerate(parts):
            (folder / f"{j}.txt").write_text(part)
        keys.add(json.dumps(source_key(text_config(tmp_path / str(i)))))
    assert len(keys) == 4
    key = source_key(text_config(tmp_path / "0"))
    assert source_key(text_config(f"{tmp_path}/0/**/*.txt")) == key
    shutil.move(tmp_path / "0", tmp_path / "moved")
    assert source_key(text_config(tmp_path / "moved")) == key
    (tmp_path / "moved" / "sub").rename(tmp_path / "moved" / "other")
    assert source_key(text_config(tmp_path / "moved")) != key


def test_the_key_of_stories_knows_size_seed_and_share():
    configs = [DataConfig(), DataConfig(size=1_999_999), DataConfig(seed=1), DataConfig(val_fraction=0.051)]
    assert len({json.dumps(source_key(config)) for config in configs}) == 4
    assert source_key(DataConfig(tokenizer="byte", seq_len=8)) == source_key(DataConfig())


def test_a_key_needs_the_files(tmp_path):
    for key_or_text in (source_key, texts):
        with pytest.raises(FileNotFoundError, match=f"^data.path={tmp_path}/none: no such file or folder$"):
            key_or_text(text_config(tmp_path / "none"))
        (tmp_path / "a.txt").write_text("a")
        with pytest.raises(FileNotFoundError, match=f"^data.val_from={tmp_path}/none: no such file or folder$"):
            key_or_text(text_config(tmp_path / "a.txt", val_from=f"{tmp_path}/none"))


def test_what_is_here_needs_neither_pinning_nor_preparing(tmp_path):
    config = text_config(tmp_path / "not read")
    assert pin(config) == (config, ())
    prepare_source(config)


# -- stories ---------------------------------------------------------------------------------------


def test_stories_are_two_documents_that_share_none():
    val, train = read_documents(DataConfig(size=60_000, val_fraction=0.25))
    parts = []
    for one in (train, val):
        ends = [reading.end for reading in read_stories(one.text)]
        parts.append({one.text[a:b] for a, b in zip([0, *ends], ends, strict=False)})
    assert (val.side, train.side) == ("val", "train")
    assert len(parts[0]) > 50
    assert len(parts[1]) > 15
    assert not parts[0] & parts[1]


def test_stories_have_the_sizes_asked_for_and_their_exact_probability():
    config = DataConfig(size=60_000, val_fraction=0.25, seed=3)
    val, train = texts(config)
    assert 15_000 <= len(val) < 17_000
    assert 45_000 <= len(train) < 47_000
    assert val == write_stories(15_000, 3, start=VAL_STORIES)
    assert floor_nats(config) == story_nats(val) > 0


def test_other_text_has_no_known_probability(tmp_path):
    assert floor_nats(text_config(tmp_path)) is None
    assert floor_nats(DataConfig(mixture=[MixturePart(source="stories")])) is None


# -- the Hub ---------------------------------------------------------------------------------------

THROUGH = """
import json, sys
from utils.config.schema import DataConfig
from utils.data.reading.sources import pin, prepare_source, read_documents, source_key
found = []
for settings in json.loads(sys.argv[1]):
    config, notes = pin(DataConfig(**settings))
    prepare_source(config)
    again = pin(config)
    documents = [[one.text, one.side, one.part] for one in read_documents(config)]
    found.append([documents, source_key(config), again == (config, ()), len(notes)])
print(json.dumps(found))
"""


def test_datasets_are_pinned_prepared_and_read_alone_and_in_a_mixture(tmp_path):
    pytest.importorskip("datasets", reason="needs datasets")
    (tmp_path / "mine.txt").write_text("mine\n")
    hub_part = {"source": "hub", "name": "acme/set"}
    mixture = [{"source": "text", "path": f"{tmp_path}/mine.txt", "document": "line"}, hub_part]
    with DatasetHub() as hub:
        commit = hub.put_dataset("acme/set", {"default": {"train": ["a", "b"], "validation": ["v"], "test": ["t"]}})
        command = [sys.executable, "-c", THROUGH, json.dumps([hub_part, {"mixture": mixture}])]
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, mixed = json.loads(done.stdout)
    assert alone[0] == [["v", "val", 0], ["t", "test", 0], ["a", "", 0], ["b", "", 0]]
    assert mixed[0] == [["mine", "", 0], ["a", "", 1], ["b", "", 1]]
    for _, key, same, notes in (alone, mixed):
        assert key["parts"][-1]["dataset"]["revision"] == commit
        assert same, "what is pinned stays as it is"
        assert notes >= 1
