"""Batch k follows from (seed, k): every block once each epoch, and the validation text exactly once."""

import hashlib

import numpy as np
import pytest
import torch

from utils.data.batching.batches import EvalBatches, TrainBatches, permute

SIZES = [*range(1, 201), 255, 256, 257, 1000, 1023, 1024, 1025, 4095, 4096, 4097, 100_003]


def train(n=200, seq_len=8, batch_size=3, seed=7):
    return TrainBatches(np.arange(n, dtype=np.uint16), seq_len, batch_size, seed)


def examples(batches, first, count):
    """Examples `first` to `first + count` of a run as rows: (count, T)."""
    rows, size = [], batches.batch_size
    for k in range(first // size, -(-(first + count) // size)):
        rows += batches.batch(k)[0].tolist()
    return np.array(rows[first % size : first % size + count])


# -- permutation -----------------------------------------------------------------------------------


def test_a_permutation_hits_every_number_once():
    for n in SIZES:
        for key in (0, 1, 2**62 + 12345):
            order = permute(np.arange(n), n, key)
            assert order.dtype == np.int64
            assert np.array_equal(np.sort(order), np.arange(n)), (n, key)


def test_a_permutation_follows_from_its_index_alone():
    n, key = 1000, 5
    order = permute(np.arange(n), n, key)
    few = np.array([999, 0, 500, 500, 3])
    assert np.array_equal(permute(few, n, key), order[few])
    assert np.array_equal(few, [999, 0, 500, 500, 3])  # the argument is left alone
    assert permute(np.array([], dtype=np.int64), n, key).shape == (0,)


def test_other_keys_are_other_permutations():
    orders = {permute(np.arange(50), 50, key).tobytes() for key in range(300)}
    assert len(orders) == 300


def test_a_permutation_has_no_visible_pattern():
    n = 4097
    order = permute(np.arange(n), n, 3)
    assert (order == np.arange(n)).sum() < 10
    assert (np.diff(order) == 1).sum() < 10
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.1


def test_every_block_may_come_first():
    first = [int(permute(np.array([0]), 8, key)[0]) for key in range(4_000)]
    assert all(380 < first.count(i) < 620 for i in range(8)), np.bincount(first)


# -- training --------------------------------------------------------------------------------------


def test_shapes_types_and_the_shift_by_one():
    batches = train()
    for k in range(20):
        ids, labels = batches.batch(k)
        assert ids.shape == labels.shape == (3, 8)
        assert ids.dtype == labels.dtype == torch.int64
        assert torch.equal(labels, ids + 1)  # the text counts 0, 1, 2 ...
        assert torch.equal(ids[:, 1:], labels[:, :-1])


@pytest.mark.parametrize(
    ("n", "seq_len", "batch_size"),
    [(200, 8, 3), (200, 8, 16), (161, 8, 24), (160, 8, 7), (1000, 1, 10), (26, 8, 1), (17, 8, 4), (9, 8, 2), (2, 1, 3)],
)
def test_each_epoch_covers_each_block_once_at_its_own_offset(n, seq_len, batch_size):
    batches = train(n, seq_len, batch_size)
    blocks = batches.n_blocks
    assert batches.tokens_per_epoch == blocks * seq_len <= n - 1
    offsets = []
    for epoch in range(6):
        rows = examples(batches, epoch * blocks, blocks)
        starts = np.sort(rows[:, 0])
        assert np.array_equal(rows, rows[:, :1] + np.arange(seq_len))
        assert np.array_equal(starts - starts[0], np.arange(blocks) * seq_len)
        assert starts[-1] + seq_len <= n - 1  # the last label is there
        offsets.append(int(starts[0]))
    room = n - 1 - blocks * seq_len
    assert max(offsets) <= room
    assert (len(set(offsets)) > 1) == (room > 0), offsets


def test_epochs_come_in_other_orders():
    batches = train(n=2000)
    blocks = batches.n_blocks
    orders = {tuple((r := examples(batches, e * blocks, blocks)[:, 0]) - r.min()) for e in range(8)}
    assert len(orders) == 8


def test_a_batch_follows_from_its_number_alone():
    one, two = train(), train()
    forward = [one.batch(k) for k in range(30)]
    for k in (29, 3, 3, 17, 0):
        for a, b, c in zip(forward[k], two.batch(k), one.batch(k), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_a_batch_may_be_changed_by_who_has_it():
    batches = train()
    ids, labels = batches.batch(0)
    before = ids.clone(), labels.clone()
    ids.zero_()
    labels.zero_()
    assert torch.equal(batches.batch(0)[0], before[0])
    assert torch.equal(batches.batch(0)[1], before[1])
    assert np.array_equal(batches.ids, np.arange(200))


def test_other_seeds_are_other_batches():
    assert len({train(n=2000, seed=seed).batch(0)[0].numpy().tobytes() for seed in range(50)}) == 50


def test_how_examples_are_put_into_batches_does_not_change_them():
    rows = [examples(train(batch_size=size), 0, 48) for size in (1, 2, 3, 8, 24, 48)]
    assert all(np.array_equal(rows[0], other) for other in rows[1:])


def test_no_random_state_is_read_or_changed():
    torch.manual_seed(0)
    np.random.seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = train().batch(5)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(train().batch(5)[0], first)


def test_the_first_batches_are_pinned():
    batches = TrainBatches(np.arange(60_000, dtype=np.uint16), 64, 16, 1337)
    data = b"".join(batches.batch(k)[0].numpy().astype("<i8").tobytes() for k in (0, 1, 57, 58, 1_000, 10**9))
    assert hashlib.sha256(data).hexdigest()[:16] == "47b4d0ede99b7a1f"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_ids_of_any_type_and_on_disk(tmp_path, dtype):
    ids = (np.arange(200) % 251).astype(dtype)
    ids.tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=dtype, mode="r")
    expected = TrainBatches(ids.astype(np.int64), 8, 3, 7).batch(4)
    for a, b in zip(TrainBatches(mapped, 8, 3, 7).batch(4), expected, strict=True):
        assert torch.equal(a, b)


def test_the_largest_ids_are_kept():
    ids = np.full(40, 65_535, dtype=np.uint16)
    assert TrainBatches(ids, 4, 2, 0).batch(0)[0].max() == 65_535


# -- evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("seq_len", [1, 4, 8])
@pytest.mark.parametrize("n", [2, 3, 5, 8, 9, 10, 16, 17, 33, 100])
def test_every_token_but_the_first_is_predicted_once(n, seq_len, batch_size):
    batches = EvalBatches(np.arange(n, dtype=np.uint16), seq_len, batch_size)
    predicted = []
    for i in range(len(batches)):
        ids, labels = batches.batch(i)
        assert ids.shape == labels.shape
        assert ids.shape[1] == seq_len
        assert 1 <= ids.shape[0] <= batch_size
        counted = labels != -100
        assert torch.equal(labels[counted], ids[counted] + 1)
        assert counted.any(dim=1).all()  # no row of padding alone
        padding = (~counted).int()
        assert (padding.diff(dim=1) >= 0).all()  # padding only at the end
        assert 0 <= ids.min() <= ids.max() < n
        predicted += labels[counted].tolist()
    assert predicted == list(range(1, n))


def test_only_the_end_is_padded():
    batches = EvalBatches(np.arange(11, dtype=np.uint16), 4, 2)
    assert len(batches) == 2
    assert batches.batch(0)[1].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert batches.batch(1)[0].tolist() == [[8, 9, 10, 10]]
    assert batches.batch(1)[1].tolist() == [[9, 10, -100, -100]]


@pytest.mark.parametrize(("wanted", "firsts"), [(1, [0]), (2, [0, 5]), (4, [0, 2, 5, 7]), (10, [*range(10)])])
def test_some_batches_are_spread_over_the_text(wanted, firsts):
    batches = EvalBatches(np.arange(81, dtype=np.uint16), 4, 2, max_batches=wanted)
    assert len(batches) == wanted
    assert [int(batches.batch(i)[0][0, 0]) // 8 for i in range(wanted)] == firsts


@pytest.mark.parametrize("wanted", [0, 10, 11, 1_000])
def test_all_batches_where_more_are_wanted_than_there_are(wanted):
    assert len(EvalBatches(np.arange(81, dtype=np.uint16), 4, 2, wanted)) == 10
