"""Orders and draws: every item once an epoch, each example from its number alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.batching.order import WINDOW, Bucketed, Draws, InOrder, Shuffled, distinct

QUICK = settings(deadline=None, max_examples=40)


def lengths_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 200, n)


@QUICK
@given(n=st.integers(1, 300), seed=st.integers(0, 2**40), curriculum=st.booleans(), group=st.integers(0, 5))
def test_every_item_comes_once_each_epoch(n, seed, curriculum, group):
    lengths = lengths_of(n)
    order = Shuffled(n, seed, lengths if curriculum else None)
    if group:
        order = Bucketed(order, lengths, group, seed, left_alone=n * curriculum)
    items, epochs = order.at(np.arange(4 * n))
    assert np.array_equal(np.sort(items.reshape(4, n), axis=1), np.tile(np.arange(n), (4, 1)))
    assert np.array_equal(epochs, np.repeat(np.arange(4), n))


@QUICK
@given(n=st.integers(1, 300), seed=st.integers(0, 99), asked=st.lists(st.integers(0, 2000), min_size=1, max_size=30))
def test_an_item_follows_from_its_number_whatever_was_asked_before(n, seed, asked):
    lengths = lengths_of(n)

    def fresh():
        return Bucketed(Shuffled(n, seed, lengths), lengths, 4, seed)

    used, numbers = fresh(), np.array(asked)
    one_by_one = [int(used.at(np.array([number]))[0][0]) for number in asked]
    assert fresh().at(numbers)[0].tolist() == one_by_one == used.at(numbers)[0].tolist()


def test_epochs_have_orders_of_their_own():
    order = Shuffled(50, 3)
    assert len({order.at(e * 50 + np.arange(50))[0].tobytes() for e in range(20)}) == 20


def test_a_curriculum_goes_from_short_to_long_once():
    lengths = lengths_of(500)
    order = Shuffled(500, 1, lengths)
    first = lengths[order.at(np.arange(500))[0]]
    assert (np.diff(first) >= 0).all()
    second = lengths[order.at(np.arange(500, 1000))[0]]
    assert abs(np.corrcoef(np.arange(500), second)[0, 1]) < 0.2
    same = Shuffled(500, 1, np.ones(500)).at(np.arange(500))[0]
    assert abs(np.corrcoef(np.arange(500), same)[0, 1]) < 0.2  # what is equally long is shuffled


@pytest.mark.parametrize("n", [64 * 8 * 3, 1000, 30])
def test_a_global_batch_holds_examples_of_one_length(n):
    lengths, group = lengths_of(n), 8
    plain, moved = Shuffled(n, 5), Bucketed(Shuffled(n, 5), lengths, group, 5)
    numbers = np.arange(n)

    def padding(order):
        padded = lengths[order.at(numbers)[0]][: n // group * group].reshape(-1, group)
        return 1 - padded.mean() / padded.max(axis=1).mean()

    assert padding(plain) > 0.3
    assert padding(moved) < {30: 0.3}.get(n, 0.05)
    # The batches themselves are in no order of length, and no example leaves its window of an epoch.
    means = lengths[moved.at(numbers)[0]][: n // group * group].reshape(-1, group).mean(axis=1)
    assert (np.diff(means) < 0).any()
    for first in range(0, n, WINDOW * group):
        window = numbers[first : first + WINDOW * group]
        assert sorted(plain.at(window)[0]) == sorted(moved.at(window)[0])


def test_buckets_leave_a_curriculum_alone():
    lengths = lengths_of(300)
    inner = Shuffled(300, 2, lengths)
    order = Bucketed(inner, lengths, 4, 2, left_alone=300)
    numbers = np.arange(900)
    assert np.array_equal(order.at(numbers[:300])[0], inner.at(numbers[:300])[0])
    assert not np.array_equal(order.at(numbers[300:])[0], inner.at(numbers[300:])[0])


def test_in_order_is_in_order():
    assert InOrder(3).at(np.arange(7))[0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert InOrder(3, np.array([2, 0, 1])).at(np.arange(4))[0].tolist() == [2, 0, 1, 2]
    assert distinct(np.array([3, 3])) == [3]
    assert distinct(np.array([3, 1, 3])) == [1, 3]


def test_draws_belong_to_an_example_and_are_even():
    draws = Draws(77)
    whole = draws.bits(np.arange(2000), 64, 0)
    assert np.array_equal(draws.bits(np.array([1500, 3]), 64, 0), whole[[1500, 3]])
    assert np.array_equal(draws.bits(np.array([9]), 10, 0)[0], whole[9, :10])  # padding moves nothing
    assert len(np.unique(whole)) == whole.size
    for other in (Draws(78).bits(np.arange(2000), 64, 0), draws.bits(np.arange(2000), 64, 1)):
        assert abs(np.corrcoef(whole.ravel().astype(float), other.ravel().astype(float))[0, 1]) < 0.01
    shares = whole / 2.0**64
    assert shares.mean() == pytest.approx(0.5, abs=0.005)
    for axis in (0, 1):
        assert np.abs(shares.mean(axis=axis) - 0.5).max() < (0.05 if axis == 0 else 0.18)
    near = (
        np.corrcoef(shares[:-1].ravel(), shares[1:].ravel())[0, 1],
        np.corrcoef(shares[:, :-1].ravel(), shares[:, 1:].ravel())[0, 1],
    )
    assert np.abs(near).max() < 0.01
    bits = (whole[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=(0, 1)) - 0.5).max() < 0.01
