"""Seeds follow from words: the same on every machine, unrelated for different words."""

import pytest

from utils.runtime.randomness import derive_seed

PINNED = {
    (1337, "init"): 8_423_670_480_959_432_637,
    (1337, "order", 0): 5_035_907_288_072_135_776,
    (1337, "dropout", 12, 3): 8_225_760_383_877_441_064,
    (0,): 4_761_921_975_702_974_394,
    (2**63, "é"): 5_400_922_048_120_803_978,
}


@pytest.mark.parametrize(("words", "seed"), PINNED.items(), ids=map(str, PINNED))
def test_pinned(words, seed):
    assert derive_seed(*words) == seed


def test_no_two_of_many_are_equal():
    seeds = {derive_seed(seed, "order", step) for seed in range(10) for step in range(10_000)}
    assert len(seeds) == 100_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_bit_is_a_coin():
    seeds = [derive_seed(1, "coin", i) for i in range(4_000)]
    for bit in range(63):
        heads = sum(seed >> bit & 1 for seed in seeds)
        assert 1_800 < heads < 2_200, bit  # six standard deviations


def test_order_and_place_of_words_count():
    different = [(1, "a", "b"), (1, "b", "a"), (1, "ab"), (1, "a"), (2, "a", "b"), (12, 3), (1, 23), (123,)]
    assert len({derive_seed(*words) for words in different}) == len(different)


def test_a_seed_has_63_bits_so_that_numpy_and_torch_take_it():
    assert max(derive_seed(0, i) for i in range(1_000)) > 2**62
