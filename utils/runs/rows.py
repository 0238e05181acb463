"""Rows by step where steps are done again: after a kill, and when a run has gone back. No torch."""

import heapq
from typing import Any

Row = dict[str, Any]
ROLLED_BACK = "rolled_back"  # the kind of a row that says: what is above of later steps than this counts no more
MOST_NAMES = 20_000  # of one step: a stranger's code may have written the rows


class LastRows:
    """Rows by step and name: a later one of the same step and name takes the place of the one before."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Row]] = {}
        self._latest: list[int] = []  # a heap of the steps there are, negative, so that the latest is first

    def add(self, step: int, name: str, row: Row) -> None:
        """Take in one row."""
        if step not in self._rows:
            self._rows[step] = {}
            heapq.heappush(self._latest, -step)
        rows = self._rows[step]
        if name in rows or len(rows) < MOST_NAMES:
            rows[name] = row

    def go_back(self, step: int) -> None:
        """Forget the rows of later steps: they are done again, or never were."""
        while self._latest and -self._latest[0] > step:
            del self._rows[-heapq.heappop(self._latest)]

    def in_order(self) -> list[Row]:
        """All of them by step, those of one step as they came."""
        return [row for step in sorted(self._rows) for row in self._rows[step].values()]
