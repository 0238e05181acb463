"""Which item is example n of a run: pure functions of (seed, n), so there is no place in the data to lose.

Knows nothing of tokens. Items are numbered 0..N-1; an epoch is every item once.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from utils.runtime.randomness import derive_seed

WINDOW = 64  # global batches among which examples are sorted by length

_seed = functools.lru_cache(4096)(derive_seed)  # the keys of an epoch are needed for each of its batches


class Order(Protocol):
    """`at`: the items of the examples `numbers` (B,) of a run, and the epoch each is in: two int64 (B,)."""

    per_epoch: int

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pure: asking changes nothing."""
        ...


class InOrder:
    """Items as they stand, or as `items` says."""

    def __init__(self, n: int, items: np.ndarray | None = None) -> None:
        self.per_epoch, self._items = n, items

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Example n of every epoch is the same."""
        index = numbers % self.per_epoch
        return (index if self._items is None else self._items[index]), numbers // self.per_epoch


class Shuffled:
    """Every epoch in an order of its own; with `lengths`, the first from short to long (Bengio et al. 2009)."""

    def __init__(self, n: int, seed: int, lengths: np.ndarray | None = None) -> None:
        self.per_epoch, self.seed = n, seed
        self._first: np.ndarray | None = None
        if lengths is not None:  # those of one length are shuffled, too
            mixed = permute(np.arange(n), n, derive_seed(seed, "order", 0))
            self._first = mixed[np.argsort(lengths[mixed], kind="stable")]

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The keyed permutation of each epoch, computed for these examples only."""
        epochs, index = np.divmod(numbers, self.per_epoch)
        items = np.empty(len(numbers), dtype=np.int64)
        for epoch in distinct(epochs):
            of_epoch = epochs == epoch
            if epoch == 0 and self._first is not None:
                items[of_epoch] = self._first[index[of_epoch]]
            else:
                items[of_epoch] = permute(index[of_epoch], self.per_epoch, epoch_key(self.seed, epoch))
        return items, epochs


class Bucketed:
    """The examples of `order`, moved so that those of one global batch are about equally long.

    The examples of WINDOW global batches (of one epoch) are sorted by length and cut into global batches, which come
    in a shuffled order: every example is still met exactly once an epoch, and how a global batch is cut into
    micro-batches changes nothing. The first `left_alone` examples stay where they are.
    """

    def __init__(
        self,
        order: Order,
        lengths: np.ndarray,
        group: int,
        seed: int,
        *,
        epochs: bool = True,
        left_alone: int = 0,
    ) -> None:
        self.order, self.lengths, self.group, self.seed = order, lengths, group, seed
        self.per_epoch, self._epochs, self._left_alone = order.per_epoch, epochs, left_alone
        self._window: Callable[[int, int], tuple[int, np.ndarray]] = functools.lru_cache(4)(self._sorted)

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items where `order` has them, after the move."""
        epochs = numbers // self.per_epoch if self._epochs else np.zeros_like(numbers)
        windows = numbers // (WINDOW * self.group)
        moved = numbers.copy()
        for epoch in distinct(epochs):
            for window in distinct(windows[epochs == epoch]):
                here = (epochs == epoch) & (windows == window) & (numbers >= self._left_alone)
                if here.any():
                    first, order = self._window(epoch, window)
                    moved[here] = order[numbers[here] - first]
        return self.order.at(moved)

    def _sorted(self, epoch: int, window: int) -> tuple[int, np.ndarray]:
        """First example of a window in an epoch, and which example takes the place of each."""
        first, last = window * WINDOW * self.group, (window + 1) * WINDOW * self.group
        if self._epochs:
            first, last = max(first, epoch * self.per_epoch), min(last, (epoch + 1) * self.per_epoch)
        first = max(first, min(self._left_alone, last))
        numbers = np.arange(first, last)
        by_length = numbers[np.argsort(self.lengths[self.order.at(numbers)[0]], kind="stable")]
        batch = numbers // self.group - first // self.group  # of the window; an epoch's edge may cut the first and last
        rank = permute(np.arange(batch[-1] + 1), int(batch[-1]) + 1, _seed(self.seed, "bucket", epoch, window))
        places = np.argsort(rank[batch], kind="stable")
        order = np.empty_like(numbers)
        order[places] = by_length
        return first, order


def distinct(values: np.ndarray) -> list[int]:
    """The different numbers of a short array, in order; cheap where they are all the same."""
    if len(values) and (values == values[0]).all():
        return [int(values[0])]
    return [int(value) for value in np.unique(values)]


def epoch_key(seed: int, epoch: int) -> int:
    """What names the order of an epoch."""
    return int(_seed(seed, "order", epoch))


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where each of `index` goes in the permutation of 0..n-1 that `key` names, without making all of it.

    A balanced Feistel network, walked until it lands below n (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"). Integer arithmetic only: the same on every platform and numpy.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    value = _feistel(index.astype(np.uint64), half, keys)
    while (outside := value >= n).any():
        value[outside] = _feistel(value[outside], half, keys)
    return value.astype(np.int64)


@functools.lru_cache(64)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(derive_seed(key, "round", i)) for i in range(4))


def _feistel(value: np.ndarray, half: int, keys: tuple[np.uint64, ...]) -> np.ndarray:
    """A bijection on numbers of 2 x half bits."""
    mask = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & mask
    for key in keys:
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2**64, as meant
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
    return (left << np.uint64(half)) | right


class Draws:
    """Random numbers of single examples: a hash of (key, example, position), the same in whatever batch they are.

    A generator for each example would cost more than the rest of a batch; the finaliser of splitmix64 (Steele, Lea
    and Flood 2014, "Fast splittable pseudorandom number generators") over a counter is as good for this.
    """

    def __init__(self, key: int) -> None:
        self._key = np.uint64(key)

    def bits(self, examples: np.ndarray, width: int, stream: int) -> np.ndarray:
        """uint64 (B, width): all 64 bits random; another `stream` gives unrelated ones."""
        row = _mix(examples.astype(np.uint64) + self._key)  # (B,)
        column = _mix(np.arange(width, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03) + np.uint64(stream))
        return _mix(row[:, None] + column)


def _mix(value: np.ndarray) -> np.ndarray:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed
