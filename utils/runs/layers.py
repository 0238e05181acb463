"""What statistics of layers a run folder holds, and how they are shown as a table. No torch."""

import math
from collections.abc import Iterable
from typing import Any

from utils.runs.rows import ROLLED_BACK, LastRows
from utils.runtime.table import Table

BINS = 24  # of a histogram of gradients, each of two powers of two
LOWEST = -40  # the power of two that the first begins at; smaller ones count there, and larger ones in the last
MOST_NAME, MOST_AXES = 300, 16  # a stranger's code may have written the rows
LARGEST, MOST_COUNT = 1e300, 1 << 62
NORMS = ("gradient_norm", "weight_norm", "update_ratio")
COUNTS = ("size", "zeros", "not_finite")
BARS = " ▁▂▃▄▅▆▇█"
Row = dict[str, Any]


def clean_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows by step, each as `Recorder.layers` writes it; what is anything else is left out.

    Steps done twice, because a run was killed or went back, count once: the last time.
    """
    found = LastRows()
    for row in rows:
        if row.get("kind") == ROLLED_BACK and _is_count(row.get("step")):
            found.go_back(row["step"])
        elif (clean := _clean(row)) is not None:
            found.add(clean["step"], clean["name"], clean)
    return found.in_order()


def layer_table(rows: list[Row]) -> Table:
    """The statistics of the last step among `rows`, one line for each tensor of weights."""
    if not rows:
        return Table([], note="No statistics of layers yet: train.stats_every says how often they are taken.")
    last = rows[-1]["step"]
    header = ("weights", "shape", "gradient", "weight", "update / weight", "zeros", "not finite", "gradients by size")
    lines = [
        (
            row["name"],
            " x ".join(map(str, row["shape"])) or "1",
            number(row["gradient_norm"]),
            number(row["weight_norm"]),
            number(row["update_ratio"]),
            f"{row['zeros'] / max(1, row['size']):.1%}",
            f"{row['not_finite']:,}",
            bars(row["histogram"]),
        )
        for row in rows
        if row["step"] == last
    ]
    note = (
        f"gradients by size: from under 2^{LOWEST + 2} at the left to 2^{LOWEST + 2 * BINS - 2} and more at the right. "
        "An update / weight near 0.001 is usual; compare it with its neighbours."
    )
    return Table(lines, header=header, title=f"step {last:,}", note=note)


def number(value: float | None) -> str:
    """Three digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.3g}"


def bars(histogram: list[int]) -> str:
    """A histogram as a line of bars; whatever is there at all can be seen."""
    most = max(histogram, default=0)
    return "".join(BARS[math.ceil(count / most * (len(BARS) - 1))] if count else BARS[0] for count in histogram)


def _clean(row: Row) -> Row | None:
    name, shape, histogram = row.get("name"), row.get("shape"), row.get("histogram")
    if not isinstance(name, str) or len(name) > MOST_NAME or not _is_count(row.get("step")):
        return None
    if not _are_counts(shape, MOST_AXES) or not _are_counts(histogram, BINS) or len(histogram or ()) != BINS:
        return None
    if not all(_is_count(row.get(key)) for key in COUNTS):
        return None
    norms = {key: row[key] if _is_norm(row.get(key)) else None for key in NORMS}
    return {"step": row["step"], "name": name, "shape": shape, **{key: row[key] for key in COUNTS}, **norms,
            "histogram": histogram}  # fmt: skip


def _are_counts(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(_is_count, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT


def _is_norm(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST  # not so NaN
