"""Ids in several shards read exactly as if they were one array."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.storing.tokens import Shard, Tokens, as_tokens, joined


def made(parts, folder=None):
    shards = []
    for i, part in enumerate(parts):
        array = np.array(part, np.uint16)
        if folder is None:
            shards.append(Shard(array, len(array), array.dtype))
        else:
            array.tofile(folder / f"{i}.bin")
            shards.append(Shard(folder / f"{i}.bin", len(array), array.dtype))
    return Tokens(shards)


lists = st.lists(st.lists(st.integers(0, 65_535), max_size=7), min_size=1, max_size=6)


@given(lists, st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_a_slice_is_that_of_the_whole(parts, first, last, step):
    whole, tokens = np.array(list(chain(*parts)), np.uint16), made(parts)
    assert len(tokens) == len(whole)
    assert np.array_equal(np.asarray(tokens), whole)
    assert tokens[first:last:step].tolist() == whole[first:last:step].tolist()
    assert [int(tokens[i]) for i in range(-len(whole), len(whole))] == [*whole, *whole]
    with pytest.raises(IndexError, match=f"token {len(whole)} of {len(whole)}"):
        tokens[len(whole)]


@given(lists.filter(any), st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_taking_goes_on_with_the_last_id_past_the_end(parts, starts, length):
    whole = np.array(list(chain(*parts)), np.int64)
    expected = whole[np.minimum(np.array(starts)[:, None] + np.arange(length), len(whole) - 1)]
    found = made(parts).take(np.array(starts), length)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)


def test_files_are_mapped_when_they_are_read_and_cannot_be_written(tmp_path):
    tokens = made([[1, 2, 3], [], [4, 5]], tmp_path)
    assert tokens[:].tolist() == [1, 2, 3, 4, 5]
    view = tokens[0:2]
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 9
    (tmp_path / "gone.bin").touch()
    late = Tokens([Shard(tmp_path / "nowhere.bin", 4, np.uint16)])
    assert len(late) == 4  # nothing was opened yet
    with pytest.raises(FileNotFoundError):
        late[0:1]


def test_more_files_than_a_process_may_open(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tokens = made([[i] for i in range(600)], tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (450, hard))
    try:
        assert np.asarray(tokens).tolist() == list(range(600))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_array_is_one_document():
    tokens = as_tokens(np.arange(5))
    assert tokens.starts.tolist() == [0, 5]
    assert tokens.documents == 1
    assert as_tokens(tokens) is tokens
    assert len(as_tokens(np.arange(0))) == 0
    with pytest.raises(ValueError, match="read forwards"):
        tokens[::-1]


def test_parts_one_after_the_other():
    one = Tokens(made([[1, 2], [3]])._shards, np.array([0, 1, 3]), targets=np.array([0, 1]), answers=made([[0, 1, 1]]))
    two = Tokens(made([[4, 5]])._shards, np.array([0, 2]), targets=np.array([1]), answers=made([[1, 0]]))
    both = joined([one, two])
    assert both[:].tolist() == [1, 2, 3, 4, 5]
    assert both.starts.tolist() == [0, 1, 3, 5]
    assert both.targets.tolist() == [0, 1, 1]
    assert both.labels is None
    assert both.answers[:].tolist() == [0, 1, 1, 1, 0]
    assert [both.document(d).tolist() for d in range(both.documents)] == [[1], [2, 3], [4, 5]]
    assert joined([one]) is one
