"""Mixtures: exact proportions, and every part with epochs of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.batching.mixture import SLOTS, Mixture, share_out
from utils.data.batching.order import InOrder, Shuffled

QUICK = settings(deadline=None, max_examples=25)


def mixture(sizes=(40, 700, 5), weights=(3, 1, 2), seed=1) -> Mixture:
    firsts = np.cumsum([0, *sizes])[:-1].tolist()
    return Mixture([Shuffled(n, seed + i) for i, n in enumerate(sizes)], weights, firsts, seed)


@pytest.mark.parametrize("weights", [(3, 1), (1, 1, 1), (0.7, 0.2, 0.1), (1, 2, 4), (5,), (1, 1, 1, 1, 1, 1, 1)])
def test_proportions_are_exact_in_every_cycle(weights):
    mixed = mixture([50] * len(weights), weights)
    size = int(mixed.slots.sum())
    assert size in SLOTS
    shares = np.array(weights) / sum(weights)
    assert np.allclose(mixed.slots / size, shares, atol=1e-12)
    for cycle in (0, 1, 999_999):
        part, _ = mixed.parts(cycle * size + np.arange(size))
        assert np.array_equal(np.bincount(part), mixed.slots)


def test_odd_weights_are_nearly_met_and_none_is_left_out():
    assert np.abs(share_out([np.pi, 1, 0.123]) / share_out([np.pi, 1, 0.123]).sum() - np.array([np.pi, 1, 0.123]) / 4.26459).max() < 1e-3  # fmt: skip  # noqa: E501
    tiny = share_out([1, 1e-9])
    assert tiny[1] == 1
    assert tiny[0] > 400


@QUICK
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_each_part_has_every_item_once_in_each_of_its_epochs(sizes, seed, data):
    weights = data.draw(st.lists(st.floats(0.05, 5), min_size=len(sizes), max_size=len(sizes)))
    mixed = mixture(sizes, weights, seed)
    numbers = np.arange(1500)
    items, epochs = mixed.at(numbers)
    part, own = mixed.parts(numbers)
    for p, size in enumerate(sizes):
        mine = part == p
        assert np.array_equal(own[mine], np.arange(mine.sum()))  # one after the other
        assert np.array_equal(epochs[mine], np.arange(mine.sum()) // size)
        local = items[mine] - sum(sizes[:p])
        whole = local[: len(local) // size * size].reshape(-1, size)
        assert (np.sort(whole, axis=1) == np.arange(size)).all()


def test_an_example_follows_from_its_number_alone():
    numbers = np.array([5, 123_456, 0, 999, 1001, 5])
    used = mixture()
    for number in (7, 3000, 1):
        used.at(np.array([number]))
    assert np.array_equal(used.at(numbers)[0], mixture().at(numbers)[0])
    assert [int(used.at(np.array([n]))[0][0]) for n in numbers] == used.at(numbers)[0].tolist()


def test_cycles_are_shuffled_each_anew():
    mixed = mixture()
    size = int(mixed.slots.sum())
    seen = {mixed.parts(cycle * size + np.arange(size))[0].tobytes() for cycle in range(20)}
    assert len(seen) == 20
    part, _ = mixed.parts(np.arange(size))
    changes = (np.diff(part) != 0).mean()
    assert changes > 0.5  # the parts do not come in runs
    assert mixture(seed=2).parts(np.arange(size))[0].tobytes() not in seen


def test_an_epoch_is_as_many_examples_as_the_parts_have():
    assert mixture().per_epoch == 745
    one = Mixture([InOrder(4)], [1.0], [0], 0)
    assert one.at(np.arange(8))[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
