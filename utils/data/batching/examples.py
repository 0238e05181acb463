"""What an example is: a block of the running text, documents packed into a row, or one document; no order, no task.

An example is one or more stretches of tokens ("spans"). T positions of a row hold inputs; a task that predicts the
next token needs one token more than it has inputs, so a span of `length` inputs has `length + 1` tokens (ahead=1).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from utils.data.batching.order import distinct, epoch_key, permute
from utils.data.storing.tokens import Tokens
from utils.runtime.randomness import derive_seed

CHUNK = 1 << 26  # answer marks that are counted at once


class Spans(NamedTuple):
    """Where the tokens of B examples lie: S spans, in the order in which they stand in the rows."""

    starts: np.ndarray  # (S,) the first token
    lengths: np.ndarray  # (S,) how many positions it fills, at least one
    rows: np.ndarray  # (S,) in which example it is, never falling
    examples: int  # B
    width: int  # positions of a row; 0 = as many as the longest of these needs
    documents: np.ndarray | None = None  # (S,) which document a span is of


class Laid(NamedTuple):
    """Spans laid out in rows. Padding has document 0 and is no token."""

    inputs: np.ndarray  # (B, T) int64
    following: np.ndarray  # (B, T) int64: the token after each; says nothing at padding
    documents: np.ndarray  # (B, T) int64: 1, 2, ... = which span of its row
    where: np.ndarray  # (B, T) int64: which token of the side an input is
    padded: bool


class Cut(Protocol):
    """A side of the data as `n` items, each an example."""

    ids: Tokens
    n: int
    seq_len: int

    def spans(self, items: np.ndarray, epochs: np.ndarray) -> Spans:
        """The tokens of `items` (B,) as they are in those epochs (B,)."""
        ...


class Blocks:
    """The running text of each part, cut every `seq_len` tokens.

    Training text is cut at another offset each epoch, so that blocks do not always begin at the same tokens.
    Otherwise every token is asked for exactly once: the next one of each but a part's last (ahead=1), or each (0).
    """

    def __init__(
        self, ids: Tokens, seq_len: int, seeds: list[int] | None, bounds: list[tuple[int, int]], ahead: int = 1
    ) -> None:
        self.ids, self.seq_len, self._seeds, self._ahead = ids, seq_len, seeds, ahead
        self._begins = np.array([begin for begin, _ in bounds], dtype=np.int64)
        self._ends = np.array([end for _, end in bounds], dtype=np.int64)
        inputs = self._ends - self._begins - ahead  # (P,)
        if seeds is None:
            blocks = -(-np.maximum(0, inputs) // seq_len)
        else:  # one block is spared, as room for the offset
            blocks = np.where(inputs > 0, np.maximum(1, (inputs + ahead - 1) // seq_len - 1), 0)
        self._rooms = np.maximum(0, self._ends - self._begins - 1 - blocks * seq_len)
        self.firsts = np.concatenate(([0], np.cumsum(blocks)))  # (P + 1,) the first item of each part
        self.n = int(self.firsts[-1])

    def spans(self, items: np.ndarray, epochs: np.ndarray) -> Spans:
        """One whole block each; shorter at the end of a text."""
        if len(self._begins) == 1:
            part = np.zeros(len(items), dtype=np.int64)
            starts = self._begins[0] + items * self.seq_len
        else:
            part = np.searchsorted(self.firsts, items, "right") - 1
            starts = self._begins[part] + (items - self.firsts[part]) * self.seq_len
        if self._seeds is not None:
            for p in distinct(part):
                for epoch in distinct(epochs[part == p]):
                    offset = epoch_key(self._seeds[p], epoch) % (int(self._rooms[p]) + 1)
                    starts[(part == p) & (epochs == epoch)] += offset
        lengths = np.minimum(self.seq_len, self._ends[part] - self._ahead - starts)
        return Spans(starts, lengths, np.arange(len(items)), len(items), self.seq_len)


class Documents:
    """Whole documents: several in a row of `seq_len` positions (packed), or one; what is longer is cut into pieces.

    A piece begins with the last token of the one before (ahead=1), so that every token but a document's first is
    predicted exactly once. `whole` = one example per document however long it is: its task cuts it.
    `lengths` (n,) is what examples are sorted by: the length of the longest document in it, in tokens.
    """

    def __init__(
        self,
        ids: Tokens,
        seq_len: int,
        bounds: list[tuple[int, int]],
        *,
        ahead: int = 1,
        packed: bool = False,
        by_length: bool = False,
        whole: bool = False,
        answers_only: bool = True,
        seed: int = 0,
    ) -> None:
        self.ids, self.seq_len = ids, seq_len
        pieces = _pieces(ids, seq_len, ahead, whole, answers_only)
        edges = [np.searchsorted(pieces.starts, [begin, end]) for begin, end in bounds]
        packs = [
            _pack(pieces, int(first), int(last), seq_len, packed, by_length, derive_seed(seed, "pack", part))
            for part, (first, last) in enumerate(edges)
        ]
        order = np.concatenate([order for order, _ in packs])  # pieces, as they stand in the rows
        counts = np.concatenate([counts for _, counts in packs])  # (n,) pieces of each row
        self._starts, self._lengths, self._of = pieces.starts[order], pieces.lengths[order], pieces.documents[order]
        self._rows = np.concatenate(([0], np.cumsum(counts)))  # (n + 1,)
        self.firsts = np.cumsum([0, *(len(counts) for _, counts in packs)])  # (P + 1,)
        self.n, self.packed, self.left_out = len(counts), packed, pieces.left_out
        self.longest = 2 * seq_len if whole and ids.targets is not None else seq_len  # positions an example can fill
        sizes = pieces.sizes[order]
        self.lengths = np.maximum.reduceat(sizes, self._rows[:-1]) if self.n else sizes
        self.filled = np.add.reduceat(self._lengths, self._rows[:-1]) if self.n else sizes  # (n,) positions
        self.cut = int(np.unique(pieces.documents[pieces.again]).size) if not whole else int((sizes > seq_len).sum())

    def spans(self, items: np.ndarray, epochs: np.ndarray) -> Spans:
        """The documents of each row; the same in every epoch."""
        counts = self._rows[items + 1] - self._rows[items]
        rows = np.repeat(np.arange(len(items)), counts)
        which = np.arange(len(rows)) + np.repeat(self._rows[items] - (np.cumsum(counts) - counts), counts)
        width = self.seq_len if self.packed else 0
        return Spans(self._starts[which], self._lengths[which], rows, len(items), width, self._of[which])


@dataclass(frozen=True)
class _Pieces:
    starts: np.ndarray  # (S,) rising
    lengths: np.ndarray  # (S,) positions
    documents: np.ndarray  # (S,)
    sizes: np.ndarray  # (S,) tokens of that document
    again: np.ndarray  # (S,) bool: not the first piece of its document
    left_out: int  # documents in which nothing is to be learned


def _pieces(ids: Tokens, seq_len: int, ahead: int, whole: bool, answers_only: bool) -> _Pieces:
    """All documents in pieces of at most `seq_len` positions; those that ask for nothing are left out."""
    begins, inputs = np.asarray(ids.starts[:-1]), np.diff(ids.starts) - ahead
    size = max(int(inputs.max(initial=1)), 1) if whole else seq_len
    counts = -(-np.maximum(0, inputs) // size)  # (D,) pieces
    documents = np.repeat(np.arange(len(begins)), counts)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = begins[documents] + number * size
    lengths = np.minimum(size, inputs[documents] - number * size)
    again = number > 0
    if answers_only and ids.targets is not None:
        asked = starts + lengths - np.maximum(starts, begins[documents] + ids.targets[documents] - ahead)
    elif answers_only and ids.answers is not None:
        asked = _marked(ids.answers, starts + ahead, lengths)
    else:
        asked = lengths
    kept = asked > 0
    left_out = len(begins) - np.unique(documents[kept]).size
    of = documents[kept]
    return _Pieces(starts[kept], lengths[kept], of, np.diff(ids.starts)[of], again[kept], int(left_out))


def _marked(answers: Tokens, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many of answers[start : start + length] are 1, for rising starts: (S,)."""
    found, done = np.zeros(len(starts), dtype=np.int64), 0
    while done < len(starts):
        first = int(starts[done])
        upto = max(done + 1, int(np.searchsorted(starts, first + CHUNK)))
        ends = starts[done:upto] + lengths[done:upto]
        sums = np.concatenate(([0], np.cumsum(answers[first : int(ends.max())], dtype=np.int64)))
        found[done:upto] = sums[ends - first] - sums[starts[done:upto] - first]
        done = upto
    return found


def _pack(
    pieces: _Pieces, first: int, last: int, seq_len: int, packed: bool, by_length: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pieces first to last as rows: the pieces in the order of the rows, and how many each row has."""
    own = np.arange(first, last)
    if not packed:
        return own, np.ones(len(own), dtype=np.int64)
    own = own[permute(np.arange(len(own)), len(own), seed)]  # so that what meets in a row is left to chance
    if by_length:  # documents of like length together, as an order from short to long needs
        own = own[np.argsort(pieces.sizes[own], kind="stable")]
    rows = (next_fit if by_length else best_fit)(pieces.lengths[own], seq_len)
    order = np.argsort(rows, kind="stable")
    return own[order], np.bincount(rows)


def next_fit(lengths: np.ndarray, space: int) -> np.ndarray:
    """Which row each piece goes into, one after the other: a new row where the last has no room."""
    rows, row, used = [], 0, 0
    for length in lengths.tolist():
        if used + length > space:
            row, used = row + 1, 0
        used += length
        rows.append(row)
    return np.array(rows, dtype=np.int64)


def best_fit(lengths: np.ndarray, space: int) -> np.ndarray:
    """Which row of `space` positions each piece goes into: longest first, where least room is left over.

    All pieces of one length are placed together, so the time depends on how many lengths there are, not on how
    many pieces (Krell et al. 2021, "Efficient sequence packing without cross-contamination").
    """
    rows, made = np.empty(len(lengths), dtype=np.int64), 0
    if not len(lengths):
        return rows
    open_rows: dict[int, np.ndarray] = {}  # by the room they have left
    rooms = 0  # bit r = there are rows with room r
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, begins = np.unique(-lengths[longest_first], return_index=True)
    for length, pieces in zip((-sizes).tolist(), np.split(longest_first, begins[1:]), strict=True):
        while len(pieces):
            if fitting := rooms >> length:
                room = length + (fitting & -fitting).bit_length() - 1
                there, rooms = open_rows.pop(room), rooms & ~(1 << room)
            else:
                room = space
                there = np.arange(made, made - (-len(pieces) // (space // length)))
                made += len(there)
            each = room // length
            used = min(len(there), -(-len(pieces) // each))
            placed = min(len(pieces), used * each)
            rows[pieces[:placed]] = np.repeat(there[:used], each)[:placed]
            pieces = pieces[placed:]
            last = placed - (used - 1) * each  # pieces in the last row that was used
            for left, which in (
                (room - each * length, there[: used - 1]),
                (room - last * length, there[used - 1 : used]),
                (room, there[used:]),
            ):
                if left and len(which):
                    open_rows[left] = np.concatenate([open_rows[left], which]) if left in open_rows else which
                    rooms |= 1 << left
    return rows


def lay(ids: Tokens, spans: Spans, pad: int, ahead: int = 1) -> Laid:
    """The tokens of `spans` in rows, `pad` behind them."""
    counts = np.bincount(spans.rows, spans.lengths, spans.examples).astype(np.int64)  # (B,) positions filled
    width = spans.width or int(counts.max())
    if len(spans.starts) == spans.examples and int(counts.min()) == width:
        where = spans.starts[:, None] + np.arange(width)
        tokens = ids.at(spans.starts[:, None] + np.arange(width + ahead))
        return Laid(tokens[:, :width], tokens[:, ahead:], np.ones_like(where), where, False)
    real = np.arange(width) < counts[:, None]
    before = np.cumsum(spans.lengths) - spans.lengths  # (S,) positions before each span
    flat = np.arange(int(counts.sum())) + np.repeat(spans.starts - before, spans.lengths)
    where, inputs = np.zeros(real.shape, np.int64), np.full(real.shape, pad, np.int64)
    following, documents = np.full(real.shape, pad, np.int64), np.zeros(real.shape, np.int64)
    where[real], inputs[real] = flat, ids.at(flat)
    following[real] = ids.at(flat + 1) if ahead else inputs[real]
    number = np.arange(len(spans.rows)) - np.searchsorted(spans.rows, spans.rows) + 1
    documents[real] = np.repeat(number, spans.lengths)
    return Laid(inputs, following, documents, where, not real.all())
