"""A shard is whole or not there: damage of any kind is noticed, and what is whole is not made again."""

import json

import numpy as np
import pytest

from utils.data.storing.shards import (
    FORMAT,
    INFO,
    WORK,
    Encoded,
    done_shard,
    read_info,
    read_json,
    tokens_of,
    write_json,
    write_shard,
)

NAME = "0-train/00000"


@pytest.fixture
def record(tmp_path):
    (tmp_path / WORK).mkdir()
    ids = np.array([5, 6, 7, 8], np.uint16)
    encoded = Encoded(ids.tobytes(), np.array([[3, 1], [1, 0]], np.int64), b"\0\1\1\0", 9)
    return write_shard(tmp_path, NAME, "abc", encoded, ids.itemsize)


def test_a_record_says_what_a_shard_holds(tmp_path, record):
    assert (record["tokens"], record["documents"], record["bytes"]) == (4, 2, 9)
    assert sorted(record["files"]) == [f"{NAME}.{end}" for end in ("answers.bin", "docs.npy", "ids.bin")]
    assert done_shard(tmp_path, NAME, "abc") == record
    assert done_shard(tmp_path, NAME, "of another text") is None
    assert done_shard(tmp_path, "0-train/00001", "abc") is None
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "remove", "longer"])
@pytest.mark.parametrize("end", ["ids.bin", "docs.npy", "answers.bin", "json"])
def test_a_damaged_shard_is_not_done(tmp_path, record, end, how):
    path = tmp_path / f"{NAME}.{end}" if end != "json" else tmp_path / WORK / "0-train-00000.json"
    damage(path, how)
    assert done_shard(tmp_path, NAME, "abc") is None


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
        return
    data[len(data) // 2] ^= 1 if how == "flip" else 0
    path.write_bytes(bytes({"flip": data, "cut": data[:-2], "empty": b"", "longer": data + b"}}"}[how]))


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "7", '"a"', "{}", '{"value": 3}', '{"value": {}, "sha256": ""}', "\x00", "{"]
)
def test_json_that_is_not_what_was_written_is_nothing(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert read_json(tmp_path / "a.json") is None


def test_json_vouches_for_itself(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert read_json(tmp_path / "a.json") == {"a": [2], "b": 1}
    wrapped = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**wrapped, "value": {"b": 2, "a": [2]}}))
    assert read_json(tmp_path / "a.json") is None


def test_the_tokens_of_a_side_are_those_of_its_shards(tmp_path, record):
    again = write_shard(tmp_path, "0-train/00001", "x", Encoded(b"\x09\0", np.array([[1], [0]]), b"\1", 1), 2)
    info = {
        "format": FORMAT,
        "kind": "chat",
        "dtype": "uint16",
        "files": {**record["files"], **again["files"]},
        "shards": {"0-train": [4, 1]},
    }
    write_json(tmp_path / INFO, info)
    assert read_info(tmp_path) == info
    train = tokens_of(tmp_path, info, 0, "train")
    assert train[:].tolist() == [5, 6, 7, 8, 9]
    assert train.starts.tolist() == [0, 3, 4, 5]
    assert train.answers[:].tolist() == [0, 1, 1, 0, 1]
    assert train.targets is None
    assert tokens_of(tmp_path, {**info, "kind": "pairs"}, 0, "train").targets.tolist() == [1, 0, 0]
    assert tokens_of(tmp_path, {**info, "kind": "labelled"}, 0, "train").labels.tolist() == [1, 0, 0]
    empty = tokens_of(tmp_path, info, 0, "test")
    assert (len(empty), empty.documents, len(empty.answers)) == (0, 0, 0)
    damage(tmp_path / "0-train" / "00001.ids.bin", "longer")
    assert read_info(tmp_path) is None
