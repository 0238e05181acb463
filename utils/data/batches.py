"""Batch k as a pure function of (seed, k): there is no loader, so there is no loader state to lose."""

import numpy as np
import torch

from utils.runtime.randomness import derive_seed

Batch = tuple[torch.Tensor, torch.Tensor]  # input_ids, labels: both (B, T) int64; label -100 = not counted


class TrainBatches:
    """Endless training micro-batches of blocks of `seq_len` tokens, in a new order every epoch.

    Each epoch cuts the text at another offset, so that blocks do not always begin at the same tokens.
    """

    def __init__(self, ids: np.ndarray, seq_len: int, batch_size: int, seed: int) -> None:
        self.ids, self.seq_len, self.batch_size, self.seed = ids, seq_len, batch_size, seed
        whole = (len(ids) - 1) // seq_len
        self.n_blocks = max(1, whole - 1)  # one block is spared, as room for the offset
        self._room = len(ids) - 1 - self.n_blocks * seq_len

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens to predict in one pass over the text."""
        return self.n_blocks * self.seq_len

    def batch(self, k: int) -> Batch:
        """Micro-batch number k of the run."""
        examples = k * self.batch_size + np.arange(self.batch_size)
        starts = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(examples // self.n_blocks):
            of_epoch = examples // self.n_blocks == epoch
            key = derive_seed(self.seed, "order", int(epoch))
            block = permute(examples[of_epoch] % self.n_blocks, self.n_blocks, key)
            starts[of_epoch] = block * self.seq_len + key % (self._room + 1)
        return _gather(self.ids, starts, self.seq_len)


class EvalBatches:
    """The validation text once, in order: every token but the first is predicted exactly once."""

    def __init__(self, ids: np.ndarray, seq_len: int, batch_size: int, max_batches: int = 0) -> None:
        self.ids, self.seq_len, self.batch_size = ids, seq_len, batch_size
        blocks = -(-(len(ids) - 1) // seq_len)
        total = -(-blocks // batch_size)
        wanted = min(total, max_batches or total)
        self._numbers = [i * total // wanted for i in range(wanted)]
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._numbers)

    def batch(self, i: int) -> Batch:
        """Batch i of len(self), spread evenly over the text."""
        first = self._numbers[i] * self.batch_size
        blocks = np.arange(first, min(first + self.batch_size, self._blocks))
        return _gather(self.ids, blocks * self.seq_len, self.seq_len)


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where each of `index` goes in the permutation of 0..n-1 that `key` names, without making all of it.

    A balanced Feistel network, walked until it lands below n (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"). Integer arithmetic only: the same on every platform and numpy.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(derive_seed(key, "round", i)) for i in range(4)]
    value = _feistel(index.astype(np.uint64), half, keys)
    while (outside := value >= n).any():
        value[outside] = _feistel(value[outside], half, keys)
    return value.astype(np.int64)


def _feistel(value: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    """A bijection on numbers of 2 x half bits."""
    mask = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & mask
    for key in keys:
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2**64, as meant
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
    return (left << np.uint64(half)) | right


def _gather(ids: np.ndarray, starts: np.ndarray, seq_len: int) -> Batch:
    """Blocks at `starts`; what would lie behind the end of the text is padding that is never counted."""
    where = starts[:, None] + np.arange(seq_len + 1)  # (B, T + 1)
    blocks = ids[np.minimum(where, len(ids) - 1)].astype(np.int64)
    labels = np.where(where[:, 1:] < len(ids), blocks[:, 1:], -100)
    return torch.from_numpy(blocks[:, :-1].copy()), torch.from_numpy(labels)
