"""A table that draws itself: aligned text in a terminal, HTML in a notebook."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import zip_longest

TABLE = "border-collapse:collapse;table-layout:auto;font-size:13px;margin:0"
CELL = "padding:3px 14px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid rgba(128,128,128,.25)"


@dataclass(frozen=True)
class Table:
    """Rows of text under an optional header and title."""

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    title: str = ""
    note: str = ""
    right: int = -1  # the column whose cells end together, as numbers do

    def __repr__(self) -> str:
        # A cell of several lines takes several lines of the table.
        lines = [
            line
            for row in [*([self.header] if self.header else []), *self.rows]
            for line in zip_longest(*(str(cell).split("\n") for cell in row), fillvalue="")
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(self._padded, line, widths, count_from(0))).rstrip() for line in lines]
        return "\n".join([*([self.title, ""] if self.title else []), *text, *([self.note] if self.note else [])])

    def _padded(self, cell: str, width: int, column: int) -> str:
        return cell.rjust(width) if column == self.right else cell.ljust(width)

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            styles = [CELL + (";text-align:right" if i == self.right else "") for i in range(len(cells))]
            parts = zip(cells, styles, strict=True)
            return "<tr>" + "".join(f'<{tag} style="{style}">{escape(str(c))}</{tag}>' for c, style in parts) + "</tr>"

        title = f'<div style="font-weight:600;margin:4px 0">{escape(self.title)}</div>' if self.title else ""
        note = f'<div style="opacity:.7;margin:4px 0">{escape(self.note)}</div>' if self.note else ""
        body = (line(self.header, "th") if self.header else "") + "".join(line(row, "td") for row in self.rows)
        return f'{title}<table style="{TABLE}">{body}</table>{note}'


def escape(text: str) -> str:
    """Text as HTML, line ends kept."""
    return html.escape(text).replace("\n", "<br>")


def count(number: float) -> str:
    """1234567 -> "1.23M": three digits that can be read."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:  # what would be rounded up to 1000 of the smaller unit
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """75 -> "1:15", 4000 -> "1:06:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
