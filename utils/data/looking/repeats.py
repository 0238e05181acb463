"""Documents that come more than once, word for word or almost, counted for a report; decides nothing about them."""

import numpy as np

from utils.data.documents import Document
from utils.data.looking.report import Finding
from utils.data.storing.splits import TableBuilder

MOST = 200_000  # documents that are compared: at most 155 bytes each, and where they stand
WAITING = 1 << 20  # characters that are hashed together
SHOWN = 3  # pairs that are named
MANY = 0.05  # share of the documents from which repeats change what is learned


class Repeats:
    """The hashes of documents seen, and where each stands."""

    def __init__(self) -> None:
        self._builder, self._waiting, self._size = TableBuilder(), list[Document](), 0
        self.where: list[str] = []

    def add(self, document: Document, size: int) -> None:
        """Note one more, of `size` characters."""
        if len(self.where) >= MOST:
            return
        self.where.append(document.where)
        self._waiting.append(document)
        self._size += size
        if self._size >= WAITING:
            self._hash()

    def findings(self) -> list[Finding]:
        """One about copies, one about documents that are almost alike."""
        self._hash()
        similar = self._builder.table().similar()
        copy = similar.first != np.arange(len(self.where))
        near = np.zeros(len(self.where), bool)
        near[similar.later] = True
        near &= ~copy
        exact_pairs = [(int(i), int(similar.first[i])) for i in np.flatnonzero(copy)[:SHOWN]]
        order = [int(np.flatnonzero(similar.later == i)[0]) for i in np.flatnonzero(near)[:SHOWN]]
        near_pairs = [(int(similar.later[k]), int(similar.earlier[k])) for k in order]
        return [
            self._finding("duplicates", "exact copies of", int(copy.sum()), exact_pairs),
            self._finding("near duplicates", "almost the same as", int(near.sum()), near_pairs),
        ]

    def _finding(self, name: str, words: str, number: int, pairs: list[tuple[int, int]]) -> Finding:
        n = len(self.where)
        of = f"the first {n:,} documents" if n >= MOST else f"{n:,} documents"
        values = {"documents": n, "share": number / max(1, n)}
        if n < 2:
            return Finding(name, "ok", 0, "too few documents to say", values=values)
        if not number:
            return Finding(name, "ok", 0, f"none among {of}", values=values)
        named = ", ".join(f"{self.where[i]} of {self.where[j]}" for i, j in pairs if self.where[i])
        told = f"{number:,} of {of} ({100 * number / n:.1f} %) are {words} an earlier one"
        told += f", such as {named}" if named else ""
        # Lee et al., "Deduplicating Training Data Makes Language Models Better" (2022).
        advice = "A model learns by heart what comes often. data.duplicates=drop keeps only the first of each."
        return Finding(name, "warning" if number > MANY * n else "note", number, told, advice, values)

    def _hash(self) -> None:
        if self._waiting:
            self._builder.add(self._waiting)
            self._waiting, self._size = [], 0
