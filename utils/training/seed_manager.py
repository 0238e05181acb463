"""Seeds for loops of your own. `run_training` derives its seeds from the step and needs none of this."""

import os
import random

import numpy as np
import torch


def set_random_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch on every device; `deterministic` also allows repeatable algorithms only.

    Deterministic costs speed on CUDA and makes an operation that has no repeatable form raise RuntimeError.
    Raises ValueError for a seed outside 0 .. 2**32 - 1 (NumPy's limit).
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, not {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    set_deterministic(deterministic)


def set_deterministic(deterministic: bool) -> None:
    """Allow only algorithms that repeat bit for bit, or (False) the fastest ones again."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = deterministic


def seed_worker(worker_id: int) -> None:
    """For DataLoader(worker_init_fn=...): seed Python and NumPy in a worker from torch's own worker seed."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)


def create_seeded_generator(seed: int) -> torch.Generator:
    """For DataLoader(generator=...): a CPU generator of its own, away from the global one."""
    return torch.Generator().manual_seed(seed)
