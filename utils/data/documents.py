"""One document, whatever it came from: what every source gives and everything after it takes."""

from dataclasses import dataclass, field

SIDES = ("train", "val", "test")
SHOWN = 20  # bad rows that are kept in words


@dataclass(slots=True, unsafe_hash=True)  # never changed; but a frozen one takes seven times as long to make
class Document:
    """A text; the prompt of a pair, with `target`; or a chat, with `messages` (then `text` is empty)."""

    text: str
    where: str = ""
    """The file and row it stands in, for messages."""
    target: str | None = None
    label: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    """`{"role": ..., "content": ...}` each."""
    side: str = ""
    """One of SIDES where the source itself says so."""
    part: int = 0
    """Which part of a mixture it is from."""


class BadRow(ValueError):
    """A row that cannot be used: where it stands (file, row, column), what is wrong, what to do."""

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"{where}: {problem}")


@dataclass
class Skipped:
    """The rows that were left out because data.on_bad_row=skip."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, bad: BadRow) -> None:
        """Count one more, and keep it in words if it is among the first."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(str(bad))
