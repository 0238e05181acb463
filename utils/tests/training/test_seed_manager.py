"""Seeds for loops of one's own."""

import random

import numpy as np
import pytest
import torch

from utils.training.seed_manager import create_seeded_generator, seed_worker, set_random_seed


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def test_the_same_seed_draws_the_same_everywhere():
    set_random_seed(7)
    first = draws()
    set_random_seed(7)
    assert draws() == first
    set_random_seed(8)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_deterministic_is_switched_on_and_off():
    set_random_seed(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    set_random_seed(1)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_numpy_cannot_take_are_refused(seed: int):
    with pytest.raises(ValueError, match="seed must be from 0 to 4294967295"):
        set_random_seed(seed)


def test_loader_workers_repeat_with_the_generator():
    class Noise(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> float:
            return random.random() + float(np.random.rand())

    def read(seed: int) -> list[float]:
        loader = torch.utils.data.DataLoader(
            Noise(), num_workers=2, worker_init_fn=seed_worker, generator=create_seeded_generator(seed), shuffle=True
        )
        return [float(x) for batch in loader for x in batch]

    assert read(3) == read(3)
    assert read(3) != read(4)
