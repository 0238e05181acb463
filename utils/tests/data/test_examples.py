"""Blocks and packed documents: no token lost, none doubled, none seen from another document."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.batching.examples import Blocks, Documents, Spans, best_fit, lay, next_fit
from utils.data.storing.tokens import Shard, Tokens

QUICK = settings(deadline=None, max_examples=60)
SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30)


def tokens(sizes: list[int], shards: int = 3, **more) -> Tokens:
    """Documents of these sizes whose ids are 0, 1, 2 ...: an id says where it stands. In several shards."""
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    ids = np.arange(starts[-1], dtype=np.uint32)
    return Tokens([Shard(part, len(part), part.dtype) for part in np.array_split(ids, shards)], starts, **more)


def everything(cut, pad=0, ahead=1, per_batch=7):
    """All items of a cut, laid out, as one list of rows (inputs, following, documents)."""
    rows = []
    for first in range(0, cut.n, per_batch):
        items = np.arange(first, min(cut.n, first + per_batch))
        laid = lay(cut.ids, cut.spans(items, np.zeros_like(items)), pad, ahead)
        rows += list(zip(laid.inputs, laid.following, laid.documents, strict=True))
    return rows


@QUICK
@given(
    sizes=SIZES, seq_len=st.integers(1, 16), packed=st.booleans(), by_length=st.booleans(), cut_at=st.integers(0, 30),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_packing_asks_once_for_every_token_but_a_documents_first(sizes, seq_len, packed, by_length, cut_at, seed):
    ids = tokens(sizes)
    edge = int(ids.starts[min(cut_at, len(sizes))])
    cut = Documents(ids, seq_len, [(0, edge), (edge, len(ids))], packed=packed, by_length=by_length, seed=seed)
    asked = []
    for inputs, following, documents in everything(cut):
        real = documents > 0
        assert real.any()
        assert (np.diff(real.astype(int)) <= 0).all()  # padding only at the end
        assert len(inputs) == seq_len if packed else real.sum() <= seq_len
        assert np.array_equal(following[real], inputs[real] + 1)
        owner = np.searchsorted(ids.starts, following[real], "right")
        assert np.array_equal(owner, np.searchsorted(ids.starts, inputs[real], "right"))  # never across documents
        assert all(len(set(owner[documents[real] == d])) == 1 for d in set(documents[real]))
        assert np.array_equal(np.unique(documents[real]), np.arange(1, documents.max() + 1))
        asked += following[real].tolist()
    assert sorted(asked) == sorted(set(range(len(ids))) - set(ids.starts.tolist()))
    assert cut.left_out == sum(size < 2 for size in sizes)
    assert cut.cut == sum(size - 1 > seq_len for size in sizes)
    parts = [inputs[0] >= edge for inputs, _, _ in everything(cut)]
    assert parts == sorted(parts)  # no row has documents of two parts
    assert parts.count(False) == cut.firsts[1]


@QUICK
@given(sizes=SIZES, seq_len=st.integers(1, 16))
def test_pieces_that_look_at_both_sides_hold_every_token_once(sizes, seq_len):
    ids = tokens(sizes)
    cut = Documents(ids, seq_len, [(0, len(ids))], ahead=0)
    seen = [token for inputs, _, documents in everything(cut, ahead=0) for token in inputs[documents > 0]]
    assert sorted(seen) == list(range(len(ids)))


@QUICK
@given(sizes=SIZES, seq_len=st.integers(1, 12), data=st.data())
def test_pieces_without_an_answer_are_left_out(sizes, seq_len, data):
    targets = np.array([data.draw(st.integers(0, size)) for size in sizes])
    marks = np.concatenate([np.arange(size) >= t for size, t in zip(sizes, targets, strict=True)]).astype(np.uint8)
    answers = Tokens([Shard(marks, len(marks), marks.dtype)])
    starts = tokens(sizes).starts
    wanted = {p for p in np.flatnonzero(marks).tolist() if p not in starts.tolist()}
    for more in ({"targets": targets}, {"answers": answers}):
        cut = Documents(tokens(sizes, **more), seq_len, [(0, len(marks))])
        asked = []
        for _, following, documents in everything(cut):
            learned = [int(token) for token in following[documents > 0] if marks[token]]
            assert learned
            asked += learned
        assert sorted(asked) == sorted(wanted)


@QUICK
@given(lengths=st.lists(st.integers(1, 32), max_size=200), space=st.integers(32, 40))
@pytest.mark.parametrize("fit", [best_fit, next_fit])
def test_rows_are_never_overfull(fit, lengths, space):
    rows = fit(np.array(lengths, dtype=np.int64), space)
    assert len(rows) == len(lengths)
    if lengths:
        used = np.bincount(rows, lengths)
        assert used.max() <= space
        assert used.min() > 0  # no empty row
        assert (used <= space / 2).sum() <= 1 or fit is next_fit


@QUICK
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_is_what_placing_one_by_one_gives(lengths):
    space, rooms = 20, []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else space) - length)
    used = np.bincount(best_fit(np.array(lengths), space), lengths)
    assert sorted(space - used) == sorted(rooms)


def test_rows_of_many_documents_are_full_and_made_fast():
    sizes = np.minimum(3000, np.random.default_rng(0).lognormal(4.5, 1, 300_000).astype(np.int64) + 2)
    ids = tokens(sizes.tolist(), shards=1)
    started = time.perf_counter()
    cut = Documents(ids, 512, [(0, len(ids))], packed=True)
    assert time.perf_counter() - started < 5  # about 0.5 s alone on a core
    assert cut.filled.sum() / (cut.n * 512) > 0.995
    assert cut.filled.sum() == (sizes - 1).sum()


def test_a_packing_follows_from_its_seed():
    ids = tokens([5, 3, 9, 2, 7, 4] * 20)
    packed = [Documents(ids, 16, [(0, len(ids))], packed=True, seed=seed) for seed in (1, 1, 2)]
    items = np.arange(packed[0].n)
    first, same, other = (cut.spans(items, items).starts.tolist() for cut in packed)
    assert first == same != other


def test_short_documents_are_packed_together_for_a_curriculum():
    ids = tokens([2, 30, 3, 17, 30, 2, 2, 9, 3, 25] * 10)
    cut = Documents(ids, 32, [(0, len(ids))], packed=True, by_length=True)
    assert (np.diff(cut.lengths) >= 0).all()
    sizes = [np.diff(ids.starts)[cut.spans(np.array([i]), np.array([0])).documents] for i in range(cut.n)]
    assert all(size.max() <= later.min() for size, later in itertools.pairwise(sizes))


# -- running text ----------------------------------------------------------------------------------


@QUICK
@given(sizes=st.lists(st.integers(0, 70), min_size=1, max_size=4), seq_len=st.integers(1, 12), ahead=st.integers(0, 1))
def test_evaluation_blocks_cover_each_part_once(sizes, seq_len, ahead):
    ids = tokens([sum(sizes)])
    ends = np.cumsum([0, *sizes]).tolist()
    cut = Blocks(ids, seq_len, None, list(itertools.pairwise(ends)), ahead)
    asked = [t for _, following, documents in everything(cut, ahead=ahead) for t in following[documents > 0]]
    assert asked == [t for a, b in itertools.pairwise(ends) for t in range(a + ahead, b)]


@QUICK
@given(sizes=st.lists(st.integers(2, 200), min_size=1, max_size=4), seq_len=st.integers(1, 12))
def test_training_blocks_stay_in_their_part_and_do_not_overlap(sizes, seq_len):
    ids = tokens([sum(sizes)])
    ends = np.cumsum([0, *sizes])
    seeds = list(range(len(sizes)))
    cut = Blocks(ids, seq_len, seeds, list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)))
    for epoch in range(3):
        items = np.arange(cut.n)
        spans = cut.spans(items, np.full(cut.n, epoch))
        asked = np.concatenate([s + 1 + np.arange(n) for s, n in zip(spans.starts, spans.lengths, strict=True)])
        assert len(np.unique(asked)) == len(asked)
        part = np.searchsorted(cut.firsts, items, "right") - 1
        assert (spans.starts >= ends[part]).all()
        assert (spans.starts + spans.lengths < ends[part + 1]).all()
        for p, size in enumerate(sizes):  # at most one block's worth and the rest are not asked for
            assert spans.lengths[part == p].sum() > size - 1 - 2 * seq_len


@QUICK
@given(data=st.data(), pad=st.integers(0, 9))
def test_rows_are_laid_out_as_a_loop_would(data, pad):
    ids, B = tokens([50, 50]), data.draw(st.integers(1, 4))
    spans = [
        (row, data.draw(st.integers(0, 80)), data.draw(st.integers(1, 10)))
        for row in range(B) for _ in range(data.draw(st.integers(1, 3)))
    ]  # fmt: skip
    rows, starts, lengths = (np.array(column) for column in zip(*spans, strict=True))
    width = data.draw(st.sampled_from([0, 30]))
    laid = lay(ids, Spans(starts, lengths, rows, B, width), pad)
    for row in range(B):
        own = [(s, n) for r, s, n in spans if r == row]
        where = [s + i for s, n in own for i in range(n)]
        rest = laid.inputs.shape[1] - len(where)
        assert laid.inputs[row].tolist() == where + [pad] * rest
        assert laid.following[row].tolist() == [t + 1 for t in where] + [pad] * rest
        assert laid.documents[row].tolist() == [d + 1 for d, (_, n) in enumerate(own) for _ in range(n)] + [0] * rest
    assert laid.padded == (laid.documents == 0).any()
    assert width or (laid.documents[:, -1] > 0).any()  # no wider than the longest
