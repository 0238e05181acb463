"""Batch k as a pure function of (seed, k): there is no loader, so there is no loader state to lose."""

import numpy as np
import torch

from utils.data.batching.examples import Blocks, Cut, Spans
from utils.data.batching.order import InOrder, Order, Shuffled, permute
from utils.data.storing.tokens import Tokens, as_tokens

__all__ = ["EvalBatches", "Once", "Running", "TrainBatches", "permute"]

Pair = tuple[torch.Tensor, torch.Tensor]  # input_ids, labels: both (B, T) int64; label -100 = not counted


class Running:
    """Endless batches of the items of `cut`, as `order` says: a new order every epoch."""

    def __init__(self, cut: Cut, order: Order, batch_size: int) -> None:
        self.cut, self.order, self.batch_size = cut, order, batch_size
        self.seq_len = cut.seq_len

    @property
    def examples_per_epoch(self) -> int:
        """Examples in one pass over the text."""
        return self.order.per_epoch

    @property
    def tokens_per_epoch(self) -> int:
        """Positions of one pass over the text, those that stay empty included."""
        return self.order.per_epoch * self.seq_len

    def numbers(self, k: int) -> np.ndarray:
        """The examples of micro-batch number k of the run."""
        return k * self.batch_size + np.arange(self.batch_size)

    def spans(self, numbers: np.ndarray) -> Spans:
        """The tokens of those examples."""
        return self.cut.spans(*self.order.at(numbers))


class Once:
    """The items of `cut` once, or `max_batches` batches spread evenly over them; `items`: in that order."""

    def __init__(self, cut: Cut, batch_size: int, max_batches: int = 0, items: np.ndarray | None = None) -> None:
        self.cut, self.order, self.batch_size = cut, InOrder(cut.n, items), batch_size
        self.seq_len = cut.seq_len
        total = -(-cut.n // batch_size)
        wanted = min(total, max_batches or total)
        self._numbers = [i * total // wanted for i in range(wanted)]

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def examples_per_epoch(self) -> int:
        """All there are, those left out by `max_batches` too."""
        return self.cut.n

    @property
    def tokens_per_epoch(self) -> int:
        """Positions of all of them."""
        return self.cut.n * self.seq_len

    def numbers(self, i: int) -> np.ndarray:
        """The examples of batch i of len(self), the last of which may have fewer."""
        first = self._numbers[i] * self.batch_size
        return np.arange(first, min(first + self.batch_size, self.cut.n))

    def spans(self, numbers: np.ndarray) -> Spans:
        """The tokens of those examples."""
        return self.cut.spans(*self.order.at(numbers))


class TrainBatches(Running):
    """Endless training micro-batches of blocks of `seq_len` tokens, in a new order every epoch.

    Each epoch cuts the text at another offset, so that blocks do not always begin at the same tokens.
    """

    def __init__(self, ids: np.ndarray | Tokens, seq_len: int, batch_size: int, seed: int) -> None:
        self.ids = as_tokens(ids)
        self.seed = seed
        blocks = Blocks(self.ids, seq_len, [seed], [(0, len(self.ids))])
        self.n_blocks = blocks.n
        super().__init__(blocks, Shuffled(blocks.n, seed), batch_size)

    def batch(self, k: int) -> Pair:
        """Micro-batch number k of the run."""
        return _gather(self.ids, self.spans(self.numbers(k)))


class EvalBatches(Once):
    """The validation text once, in order: every token but the first is predicted exactly once."""

    def __init__(self, ids: np.ndarray | Tokens, seq_len: int, batch_size: int, max_batches: int = 0) -> None:
        self.ids = as_tokens(ids)
        super().__init__(Blocks(self.ids, seq_len, None, [(0, len(self.ids))]), batch_size, max_batches)

    def batch(self, i: int) -> Pair:
        """Batch i of len(self), spread evenly over the text."""
        return _gather(self.ids, self.spans(self.numbers(i)))


def _gather(ids: Tokens, spans: Spans) -> Pair:
    """Blocks, one span each; what would lie behind the end of the text is padding that is never counted."""
    where = spans.starts[:, None] + np.arange(spans.width + 1)  # (B, T + 1)
    blocks = ids.at(np.minimum(where, len(ids) - 1))
    labels = blocks[:, 1:].copy()
    labels[np.arange(spans.width) >= spans.lengths[:, None]] = -100
    return torch.from_numpy(blocks[:, :-1].copy()), torch.from_numpy(labels)
