"""What is wrong with somebody's model code, in which line, and the likely fix: plain values, no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing found in an export."""

    code: str
    """A short stable name, such as `forward-takes-intermediates`."""
    message: str
    """What is wrong, in words with names and numbers."""
    fix: str = ""
    """The likely fix."""
    file: str = "model.py"
    line: int = 0
    """Counted from 1; 0 where no line is to blame."""
    severity: str = "fail"
    """fail: it cannot work. warn: it works, look at it."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" + (f"\n  -> {self.fix}" if self.fix else "")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


class ExportError(ValueError):
    """An export that cannot be used, with everything that was found."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the findings; where in our code it was raised is no help to anybody."""
        return str(self).splitlines()
