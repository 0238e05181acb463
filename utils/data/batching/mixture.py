"""Several sources learned together: which part example n is from, and which of its examples; a pure function."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from utils.data.batching.order import Order, distinct, permute
from utils.runtime.randomness import derive_seed

SLOTS = range(500, 1001)  # how long a cycle may be, in examples


class Mixture:
    """Examples of several orders, in the proportion of `weights`, exactly so in every cycle of about 1,000 examples.

    A cycle is a table with as many slots for each part as its weight deserves, shuffled anew for each cycle. A part
    goes through its own examples one after the other, so it has epochs and orders of its own: a small part comes
    again while a large one is still in its first epoch. `firsts` (P,): the number of each part's first item.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], firsts: Sequence[int], seed: int) -> None:
        self.orders, self.firsts, self.seed = list(orders), list(firsts), seed
        self.per_epoch = sum(order.per_epoch for order in orders)
        self.slots = share_out(weights)  # (P,)
        self._owners = np.repeat(np.arange(len(self.slots)), self.slots)  # (cycle,)
        self._cycle: Callable[[int], tuple[np.ndarray, np.ndarray]] = functools.lru_cache(8)(self._shuffled)

    def parts(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which part each example is from, and which of the part's examples it is: two (B,)."""
        part, own = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        cycles, slot = np.divmod(numbers, len(self._owners))
        for cycle in distinct(cycles):
            here = cycles == cycle
            owners, ranks = self._cycle(cycle)
            part[here] = owners[slot[here]]
            own[here] = cycle * self.slots[part[here]] + ranks[slot[here]]
        return part, own

    def at(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items of these examples and the epoch each is in, of its own part: two int64 (B,)."""
        items, epochs = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        part, own = self.parts(numbers)
        for p in distinct(part):
            here = part == p
            items[here], epochs[here] = self.orders[p].at(own[here])
            items[here] += self.firsts[p]
        return items, epochs

    def _shuffled(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The part of each slot, and how many slots of that part come before it in the cycle: two (cycle,)."""
        size = len(self._owners)
        owners = self._owners[permute(np.arange(size), size, derive_seed(self.seed, "mixture", cycle))]
        ranks = np.empty(size, np.int64)
        ranks[np.argsort(owners, kind="stable")] = np.arange(size) - np.repeat(
            np.cumsum(self.slots) - self.slots, self.slots
        )
        return owners, ranks


def share_out(weights: Sequence[float]) -> np.ndarray:
    """How many slots of a cycle each part has, at least one each: the length in SLOTS that fits best (P,)."""
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    best: tuple[float, np.ndarray] | None = None
    for size in SLOTS:
        slots = np.maximum(1, np.floor(shares * size).astype(np.int64))
        missing = size - int(slots.sum())
        if missing > 0:  # the largest remainders get what rounding down left over
            slots[np.argsort(slots - shares * size, kind="stable")[:missing]] += 1
        error = float(np.abs(slots / slots.sum() - shares).max())
        if best is None or error < best[0] - 1e-12:
            best = error, slots
    assert best is not None
    return best[1]
