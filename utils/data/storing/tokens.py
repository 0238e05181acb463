"""One side's token ids in shards on disk, read as one array; knows nothing of text, tokenizers or batches."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

OPEN_MAPS = 256  # files mapped at once: each takes a descriptor, and a process may have about a thousand


class Shard:
    """`length` ids in a file, which is mapped when it is first read; or an array."""

    def __init__(self, source: Path | np.ndarray, length: int, dtype: Any) -> None:
        self.source, self.length, self.dtype = source, length, np.dtype(dtype)

    def ids(self) -> np.ndarray:
        """The ids, read-only where they are a file's."""
        return self.source if isinstance(self.source, np.ndarray) else _mapped(self, self.source)


@functools.lru_cache(OPEN_MAPS)
def _mapped(shard: Shard, path: Path) -> np.ndarray:
    if not shard.length:  # an empty file cannot be mapped
        return np.empty(0, shard.dtype)
    # As a plain array: indexing the subclass costs several times as much.
    return np.asarray(np.memmap(path, shard.dtype, "r", shape=(shard.length,)))


class Tokens:
    """N ids of D documents that lie one after the other; nothing is read before it is asked for.

    starts: int64 (D + 1,), document d is ids[starts[d]:starts[d + 1]], what separates it from the next included.
    targets: int64 (D,), where the answer of a pair begins, counted from its document's start; None if no pairs.
    labels: int64 (D,), the class of each document; None if it has none.
    answers: uint8 (N,) as Tokens, 1 = this token is learned (chats); None = all are.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        starts: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        answers: "Tokens | None" = None,
    ) -> None:
        self._shards = list(shards)
        self.dtype = shards[0].dtype if shards else np.dtype(np.uint16)
        lengths = [shard.length for shard in shards]
        self._ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)  # (S + 1,)
        self.starts = np.array([0, len(self)], np.int64) if starts is None else starts
        self.targets, self.labels, self.answers = targets, labels, answers

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return len(self.starts) - 1

    def __getitem__(self, where: Any) -> Any:
        """One id (int), or the ids of a slice as an array: a read-only view if it lies in one shard."""
        if isinstance(where, slice):
            first, last, step = where.indices(len(self))
            if step < 0:
                raise ValueError("tokens are read forwards: the step of a slice has to be positive")
            return self._between(first, max(first, last))[:: step or 1]
        index = int(where)
        if not -len(self) <= index < len(self):
            raise IndexError(f"token {index} of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self._ends, index, "right")) - 1
        return self._shards[shard].ids()[index - self._ends[shard]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it in memory."""
        return np.array(self._between(0, len(self)), dtype=dtype or self.dtype)

    def document(self, d: int) -> np.ndarray:
        """The ids of document d, its separator included."""
        return self._between(int(self.starts[d]), int(self.starts[d + 1]))

    def take(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int64 (B, length): the ids from each of `starts` (B,) on; past the end, the last id again."""
        out = np.empty((len(starts), length), np.int64)
        for row, start in zip(out, np.asarray(starts).tolist(), strict=True):
            found = self._between(min(start, len(self) - 1), min(start + length, len(self)))
            row[: len(found)] = found
            row[len(found) :] = found[-1]
        return out

    def at(self, where: np.ndarray) -> np.ndarray:
        """int64, shaped like `where`: the ids at those places, which are all within 0..N-1."""
        if not where.size:
            return np.empty(where.shape, np.int64)
        first, last = np.searchsorted(self._ends, (where.min(), where.max()), "right") - 1
        if first == last:
            found: np.ndarray = self._shards[first].ids()[where - self._ends[first]].astype(np.int64)
            return found
        out, shard = np.empty(where.shape, np.int64), np.searchsorted(self._ends, where, "right") - 1
        for i in np.unique(shard):
            there = shard == i
            out[there] = self._shards[i].ids()[where[there] - self._ends[i]]
        return out

    def _between(self, first: int, last: int) -> np.ndarray:
        """ids[first:last], both within 0..N."""
        if first >= last:
            return np.empty(0, self.dtype)
        shard = int(np.searchsorted(self._ends, first, "right")) - 1
        begin = int(self._ends[shard])
        if last <= self._ends[shard + 1]:
            view: np.ndarray = self._shards[shard].ids()[first - begin : last - begin]
            return view
        out, filled = np.empty(last - first, self.dtype), 0
        while begin < last:  # one shard after the other: more than a few at once would be too many open files
            found = self._shards[shard].ids()[max(0, first - begin) : last - begin]
            out[filled : filled + len(found)] = found
            filled += len(found)
            shard += 1
            begin = int(self._ends[shard])
        return out


def as_tokens(ids: np.ndarray | Tokens) -> Tokens:
    """An array of ids as one document."""
    if isinstance(ids, Tokens):
        return ids
    array = np.asarray(ids)
    return Tokens([Shard(array, len(array), array.dtype)])


def joined(sides: Sequence[Tokens]) -> Tokens:
    """Several one after the other, as one."""
    if len(sides) == 1:
        return sides[0]
    offsets = np.cumsum([0, *(len(side) for side in sides)], dtype=np.int64)
    starts = [side.starts[:-1] + offset for side, offset in zip(sides, offsets, strict=False)]
    answers = [side.answers for side in sides if side.answers is not None]
    return Tokens(
        [shard for side in sides for shard in side._shards],
        np.concatenate([*starts, offsets[-1:]]),
        _concatenated([side.targets for side in sides]),
        _concatenated([side.labels for side in sides]),
        joined(answers) if sides and len(answers) == len(sides) else None,
    )


def _concatenated(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    found = [array for array in arrays if array is not None]
    return np.concatenate(found) if found and len(found) == len(arrays) else None
