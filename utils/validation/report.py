"""What a validation found, as a value: text, HTML and JSON. Knows no model and no way to check one."""

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

STATUSES = ("pass", "warn", "fail", "skip")
WIDTH = 110  # columns of the text table
COLUMNS = (("", 4), ("check", 18), ("measured", 48), ("expected", 34))
GAP = "  "

# For the dot only: words keep the page's own colour, so that light and dark pages both stay readable.
DOTS = {"pass": "#2da44e", "warn": "#d29922", "fail": "#e5534b", "skip": "#8b949e"}


@dataclass(frozen=True)
class Check:
    """One question put to a model, and the answer.

    Args:
        name: what was asked, in one or two words.
        status: "pass", "warn" (works, look at it), "fail" (broken) or "skip" (could not be asked).
        measured: what was found, in words with numbers.
        threshold: what a sound model shows.
        advice: what to do about it; empty when passed.
        seconds: how long the check took.
        values: the same numbers for machines, by name.

    Raises:
        ValueError: for any other status.
    """

    name: str
    status: str
    measured: str
    threshold: str = ""
    advice: str = ""
    seconds: float = 0.0
    values: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}; got {self.status!r}")


@dataclass(frozen=True)
class Report:
    """Checks under one title; the verdict is computed from them, so the two cannot disagree."""

    title: str
    checks: Iterable[Check]

    def __post_init__(self):
        object.__setattr__(self, "checks", tuple(self.checks))

    @property
    def counts(self) -> dict[str, int]:
        """How many checks ended in each status, in the order pass, warn, fail, skip."""
        return {status: sum(check.status == status for check in self.checks) for status in STATUSES}

    @property
    def verdict(self) -> str:
        """Either "sound", "sound, with warnings" or "not sound"; the last also where no check ran."""
        counts = self.counts
        if counts["fail"] or not counts["pass"] + counts["warn"]:
            return "not sound"
        return "sound, with warnings" if counts["warn"] else "sound"

    @property
    def passed(self) -> bool:
        """True when the verdict is sound, with or without warnings."""
        return self.verdict != "not sound"

    @property
    def summary(self) -> str:
        """The counts in words, such as "9 passed, 1 warning, 1 skipped"."""
        counts = self.counts
        if len(self.checks) == counts["skip"]:
            return "no check ran" + (f", {counts['skip']} skipped" if self.checks else "")
        warned = "warning" if counts["warn"] == 1 else "warnings"
        words = {"pass": "passed", "warn": warned, "fail": "failed", "skip": "skipped"}
        return ", ".join(f"{number} {words[status]}" for status, number in counts.items() if number)

    def to_dict(self) -> dict:
        """The whole report in types JSON knows; a number that is NaN or infinite becomes None."""
        return {
            "title": self.title,
            "verdict": self.verdict,
            "passed": self.passed,
            "counts": self.counts,
            "checks": [
                {
                    "name": check.name,
                    "status": check.status,
                    "measured": check.measured,
                    "threshold": check.threshold,
                    "advice": check.advice,
                    "seconds": round(check.seconds, 4),
                    "values": _plain(check.values),
                }
                for check in self.checks
            ],
        }

    def __repr__(self) -> str:
        lines = [*textwrap.wrap(f"{self.title}  {self.verdict.upper()} ({self.summary})", WIDTH), ""]
        lines += _row([name for name, _ in COLUMNS])
        lines.append(GAP.join("-" * width for _, width in COLUMNS))
        indent = " " * sum(width + len(GAP) for _, width in COLUMNS[:2])
        for check in self.checks:
            lines += _row([check.status, check.name, check.measured, check.threshold])
            lines += textwrap.wrap(
                check.advice, WIDTH, initial_indent=indent + "-> ", subsequent_indent=indent + "   "
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cell = "text-align:left;vertical-align:top;padding:6px 12px 6px 0;white-space:normal;"
        line = "border:0;border-bottom:1px solid rgba(128,128,128,.35);background:transparent;"
        head = "".join(
            f'<th style="{cell}font-weight:600;opacity:.75">{name}</th>'
            for name in ("status", "check", "measured", "expected", "time")
        )
        rows = "".join(self._html_row(check, cell, line) for check in self.checks)
        worst = {"sound": "pass", "sound, with warnings": "warn", "not sound": "fail"}[self.verdict]
        return (
            '<div style="color:inherit;font-family:system-ui,sans-serif;font-size:14px;line-height:1.45">'
            f'<p style="margin:0 0 8px;font-size:16px"><strong>{escape(self.title)}</strong> &nbsp;'
            f"{_dot(worst)} <strong>{escape(self.verdict)}</strong> "
            f'<span style="opacity:.75">({escape(self.summary)})</span></p>'
            '<table style="border-collapse:collapse;table-layout:auto;max-width:1100px;color:currentColor;margin:0">'
            f'<thead><tr style="{line}">{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )

    @staticmethod
    def _html_row(check: Check, cell: str, line: str) -> str:
        advice = (
            f'<div style="margin-top:4px;padding-left:10px;border-left:3px solid {DOTS[check.status]}">'
            f"{escape(check.advice)}</div>"
            if check.advice
            else ""
        )
        weight = "font-weight:600;" if check.status in ("warn", "fail") else ""
        return (
            f'<tr style="{line}"><td style="{cell}white-space:nowrap;{weight}">'
            f"{_dot(check.status)} {check.status}</td>"
            f'<td style="{cell}font-weight:600">{escape(check.name)}</td>'
            f'<td style="{cell}overflow-wrap:anywhere">{escape(check.measured)}{advice}</td>'
            f'<td style="{cell}opacity:.85">{escape(check.threshold)}</td>'
            f'<td style="{cell}white-space:nowrap;opacity:.75">{check.seconds:.2f} s</td></tr>'
        )


def named(names: list[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def judged(name: str, findings: list[tuple[str, str, str]], good: str, threshold: str, values: dict) -> Check:
    """One check from several findings (status, measured, advice): the worst decides, all are told."""
    findings = sorted(findings, key=lambda finding: -STATUSES.index(finding[0]))
    status = findings[0][0] if findings else "pass"
    measured = "; ".join(finding[1] for finding in findings) or good
    return Check(name, status, measured, threshold, " ".join(found[2] for found in findings), values=values)


def _dot(status: str) -> str:
    return f'<span aria-hidden="true" style="color:{DOTS[status]}">&#9679;</span>'


def _row(texts: list[str]) -> list[str]:
    """One table row as aligned lines: every column wraps by itself."""
    columns = [textwrap.wrap(text, width) or [""] for text, (_, width) in zip(texts, COLUMNS, strict=True)]
    height = max(len(column) for column in columns)
    lines = []
    for index in range(height):
        parts = [
            (column[index] if index < len(column) else "").ljust(width)
            for column, (_, width) in zip(columns, COLUMNS, strict=True)
        ]
        lines.append(GAP.join(parts).rstrip())
    return lines


def _plain(value):
    """Numbers, text, lists and dicts as JSON has them; JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
