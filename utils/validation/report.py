"""What a validation found, as a value: text, HTML and JSON. Knows no model and no way to check one."""

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from utils.runtime.files import write_atomic
from utils.validation.figures import check_figure, clean_text, figure_html

STATUSES = ("pass", "warn", "fail", "skip")
TIERS = {1: "Tier 1: is it sound?", 2: "Tier 2: how does it behave?", 3: "Tier 3: can it learn?"}
MOST_CHECKS, MOST_TEXT, MOST_VALUES, DEEPEST = 200, 2000, 20_000, 6  # of a report from somewhere else
KIND_ENDS = ". Found: "  # in what the check `interface` says, after the kind of model
WIDTH = 110  # columns of the text table
COLUMNS = (("", 4), ("check", 18), ("measured", 48), ("expected", 34))
GAP = "  "
# No scripts and no network, whatever the text of a report says.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 24px auto; max-width: 1100px; padding: 0 16px; background: #ffffff; color: #1f2328; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #0d1117; color: #e6edf3; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

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
        why: why it matters, in a sentence; the same whatever was found.
        seconds: how long the check took.
        values: the same numbers for machines, by name.
        figure: what to draw where looking beats reading, as `figures.py` takes it; plain numbers and words.
        tier: 1 is it sound, 2 how does it behave, 3 can it learn.

    Raises:
        ValueError: for any other status or tier.
    """

    name: str
    status: str
    measured: str
    threshold: str = ""
    advice: str = ""
    seconds: float = 0.0
    values: dict = field(default_factory=dict)
    why: str = ""
    figure: dict | None = None
    tier: int = 1

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}; got {self.status!r}")
        if self.tier not in TIERS:
            raise ValueError(f"tier must be one of {', '.join(map(str, TIERS))}; got {self.tier!r}")


@dataclass(frozen=True)
class Report:
    """Checks of one tier or several under one title; the verdict is computed from them, so they cannot disagree."""

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

    @property
    def told(self) -> str:
        """In a sentence or two: what kind of model it is, as far as a check says so, and what decided the verdict."""
        kind = next((check.measured for check in self.checks if check.name == "interface"), "").partition(KIND_ENDS)[0]
        first = next((c for status in ("fail", "warn") for c in self.checks if c.status == status), None)
        if first is None:
            return kind and f"{kind}."
        word = "Fails" if first.status == "fail" else "Look at"
        measured = textwrap.shorten(first.measured, 160, placeholder=" ...")
        return f"{kind}. {word} first: {first.name}: {measured}".removeprefix(". ")

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
                    "why": check.why,
                    "figure": _plain(check.figure),
                    "tier": check.tier,
                }
                for check in self.checks
            ],
        }

    @classmethod
    def from_dict(cls, found: Any) -> "Report":
        """The report that `to_dict` wrote, read as if a stranger had written it.

        Text is cut at 2,000 characters and loses control characters. A figure that cannot be drawn is left
        out and its check says so. The verdict is computed anew.

        Raises:
            ValueError: anything else is missing or of another type.
        """
        checks = found.get("checks") if isinstance(found, dict) else None
        if not isinstance(checks, list) or len(checks) > MOST_CHECKS:
            raise ValueError(f"a report is a dict with a title and a list of at most {MOST_CHECKS} checks")
        return cls(_told(found, "title"), [_check_from(check) for check in checks])

    def merge(self, *others: "Report") -> "Report":
        """One report with the checks of all, under this title."""
        return Report(self.title, [check for report in (self, *others) for check in report.checks])

    @property
    def tiers(self) -> dict[int, list[Check]]:
        """The checks of each tier that is present, in the tiers' order."""
        return {tier: same for tier in TIERS if (same := [check for check in self.checks if check.tier == tier])}

    def __repr__(self) -> str:
        lines = textwrap.wrap(f"{self.title}  {self.verdict.upper()} ({self.summary})", WIDTH)
        lines += [*textwrap.wrap(self.told, WIDTH), ""]
        lines += _row([name for name, _ in COLUMNS])
        lines.append(GAP.join("-" * width for _, width in COLUMNS))
        indent = " " * sum(width + len(GAP) for _, width in COLUMNS[:2])
        for tier, checks in self.tiers.items():
            lines += ["", TIERS[tier]] if len(self.tiers) > 1 else []
            for check in checks:
                lines += _row([check.status, check.name, check.measured, check.threshold])
                lines += textwrap.wrap(
                    check.advice, WIDTH, initial_indent=indent + "-> ", subsequent_indent=indent + "   "
                )
        return "\n".join(lines)

    def to_html(self) -> str:
        """A whole page that needs nothing else: no script, no network, its pictures inside."""
        return PAGE.format(title=escape(self.title), body=self._repr_html_())

    def save(self, path: Path | str) -> Path:
        """Write the page to a file, in one instant; returns its path."""
        path = Path(path)
        write_atomic(path, self.to_html())
        return path

    def _repr_html_(self) -> str:
        cell = "text-align:left;vertical-align:top;padding:6px 12px 6px 0;white-space:normal;"
        line = "border:0;border-bottom:1px solid rgba(128,128,128,.35);background:transparent;"
        head = "".join(
            f'<th style="{cell}font-weight:600;opacity:.75">{name}</th>'
            for name in ("status", "check", "measured", "expected", "time")
        )
        rows = ""
        for tier, checks in self.tiers.items():
            if len(self.tiers) > 1:
                heading = f"{cell}padding-top:18px;font-size:15px;font-weight:600"
                rows += f'<tr style="{line}"><th colspan="5" style="{heading}">{TIERS[tier]}</th></tr>'
            rows += "".join(self._html_row(check, cell, line) for check in checks)
        worst = {"sound": "pass", "sound, with warnings": "warn", "not sound": "fail"}[self.verdict]
        told = f'<p style="margin:0 0 12px">{escape(self.told)}</p>' if self.told else ""
        return (
            '<div style="color:inherit;font-family:system-ui,sans-serif;font-size:14px;line-height:1.45">'
            f'<p style="margin:0 0 8px;font-size:16px"><strong>{escape(self.title)}</strong> &nbsp;'
            f"{_dot(worst)} <strong>{escape(self.verdict)}</strong> "
            f'<span style="opacity:.75">({escape(self.summary)})</span></p>{told}'
            '<table style="border-collapse:collapse;table-layout:auto;width:100%;max-width:1100px;color:currentColor;'
            'margin:0">'
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
        why = f'<div style="font-size:12px;opacity:.7;margin-top:2px">{escape(check.why)}</div>' if check.why else ""
        figure = f'<div style="margin:8px 0 4px">{_figure(check)}</div>' if check.figure else ""
        return (
            f'<tr style="{line}"><td style="{cell}white-space:nowrap;{weight}">'
            f"{_dot(check.status)} {check.status}</td>"
            f'<td style="{cell}font-weight:600">{escape(check.name)}</td>'
            f'<td style="{cell}overflow-wrap:anywhere">{escape(check.measured)}{why}{advice}{figure}</td>'
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


def _figure(check: Check) -> str:
    try:
        return figure_html(check.figure)
    except ImportError:
        return "The figure needs matplotlib: pip install matplotlib."
    except ValueError as error:
        return f"The figure cannot be drawn: {escape(str(error))}."


def _told(found: dict, name: str, default: str | None = None) -> str:
    value = found.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"a report's {name} must be text; got {type(value).__name__}")
    return clean_text(value[:MOST_TEXT], name, MOST_TEXT)


def _check_from(found: Any) -> Check:
    if not isinstance(found, dict):
        raise ValueError(f"a check is a dict; got {type(found).__name__}")
    texts = {name: _told(found, name) for name in ("name", "status", "measured")}
    texts |= {name: _told(found, name, "") for name in ("threshold", "advice", "why")}
    seconds, tier, values = found.get("seconds", 0.0), found.get("tier", 1), found.get("values", {})
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        raise ValueError("a check's seconds must be a number of seconds, at least 0")
    if isinstance(tier, bool) or not isinstance(tier, int):
        raise ValueError(f"tier must be one of {', '.join(map(str, TIERS))}; got {type(tier).__name__}")
    if not isinstance(values, dict):
        raise ValueError(f"a check's values are a dict; got {type(values).__name__}")
    figure = found.get("figure")
    if figure is not None:
        try:
            figure = check_figure(figure)
        except ValueError as error:
            figure, texts["advice"] = None, f"{texts['advice']} (Its figure was left out: {error}.)".strip()
    return Check(**texts, seconds=float(seconds), values=_read(values, [MOST_VALUES]), figure=figure, tier=tier)


def _read(value: Any, left: list[int], depth: int = 0) -> Any:
    """A copy of plain data; `left` counts down what it may still hold."""
    left[0] -= 1
    if left[0] < 0 or depth > DEEPEST:
        raise ValueError(f"a check's values hold more than {MOST_VALUES:,} items, or are deeper than {DEEPEST}")
    if isinstance(value, dict):
        return {_told({"key": key}, "key"): _read(item, left, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_read(item, left, depth + 1) for item in value]
    if isinstance(value, str):
        return _told({"value": value}, "value")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and (abs(value) < 1e300 or isinstance(value, float)):
        return _plain(value)
    raise ValueError(f"a check's values are numbers, text, lists and dicts; got {type(value).__name__}")


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
