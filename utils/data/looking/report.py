"""What a look at data found, as text, HTML and JSON; knows neither the data nor how to look."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

SEVERITIES = ("ok", "note", "warning", "stop")
# For the dot only: words keep the page's own colour, so that light and dark pages both stay readable.
DOTS = {"ok": "#2da44e", "note": "#3b82f6", "warning": "#d29922", "stop": "#e5534b"}
WIDTH, NAME = 110, 18  # columns of the text: all of it, and of a finding's name
CELL = "text-align:left;vertical-align:top;padding:5px 14px 5px 0;white-space:normal;background:transparent;border:0;"
TABLE = "border-collapse:collapse;width:100%;max-width:900px;color:inherit;font-size:13px;margin:0"
LINE = "border:0;border-bottom:1px solid rgba(128,128,128,.3);background:transparent;"
# No scripts and no network, whatever a text says.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 24px auto; max-width: 1000px; padding: 0 16px; background: #ffffff; color: #1f2328;
  font: 13px/1.45 system-ui, sans-serif; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #0d1117; color: #e6edf3; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Finding:
    """One question put to the data, and the answer.

    Args:
        name: what was asked, in one or two words.
        severity: "ok", "note" (good to know), "warning" (look at it) or "stop" (nothing can be learned from this).
        number: the answer, as one number.
        told: the answer in words.
        advice: what to do about it; empty when ok.
        values: more numbers for machines, by name; types that JSON has.
        picture: HTML drawn below; made here, never from the data's own text.
    """

    name: str
    severity: str
    number: float
    told: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    picture: str = ""

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES

    def to_dict(self) -> dict[str, Any]:
        """All but the picture."""
        names = ("name", "severity", "number", "told", "advice", "values")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class DataReport:
    """Findings under a title. A warning advises; only "stop" means that the data cannot be used."""

    title: str
    findings: Sequence[Finding]
    note: str = ""
    """What was looked at, where it is not all of the data."""

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name. Raises KeyError."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    @property
    def worst(self) -> str:
        """The most severe of all; "ok" for none."""
        return max((finding.severity for finding in self.findings), key=SEVERITIES.index, default="ok")

    @property
    def summary(self) -> str:
        """Such as "1 warning, 2 notes, 8 ok"."""
        counts = {s: sum(finding.severity == s for finding in self.findings) for s in SEVERITIES}
        plural = {s: s if counts[s] == 1 or s == "ok" else f"{s}s" for s in SEVERITIES}
        return ", ".join(f"{counts[s]} {plural[s]}" for s in reversed(SEVERITIES) if counts[s])

    def to_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        findings = [finding.to_dict() for finding in self.findings]
        return {"title": self.title, "worst": self.worst, "note": self.note, "findings": findings}

    def __repr__(self) -> str:
        lines = [f"{self.title}: {self.summary}", *textwrap.wrap(self.note, WIDTH)]
        blank = " " * (9 + NAME)
        for finding in self.findings:
            head = f"{finding.severity:<9}{finding.name:<{NAME}}"
            lines += textwrap.wrap(finding.told, WIDTH, initial_indent=head, subsequent_indent=blank)
            advice = textwrap.wrap(finding.advice, WIDTH, initial_indent=f"{blank}-> ", subsequent_indent=f"{blank}   ")
            lines += advice
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        open_rows = [finding for finding in self.findings if finding.severity != "ok" or finding.picture]
        fine = [finding for finding in self.findings if finding not in open_rows]
        what = f"{len(fine)} checks found nothing amiss" if len(fine) > 1 else "1 check found nothing amiss"
        folded = (
            f'<details style="margin:4px 0"><summary style="cursor:pointer;opacity:.85">{what}</summary>'
            f'<table style="{TABLE}"><tbody>{"".join(map(_html_row, fine))}</tbody></table></details>'
            if fine
            else ""
        )
        note = f'<div style="opacity:.75;margin:0 0 4px">{escape(self.note)}</div>' if self.note else ""
        return (
            '<div style="color:inherit;font-family:system-ui,sans-serif;font-size:13px;line-height:1.45;margin:12px 0">'
            f'<div style="margin:0 0 4px;font-size:14px"><strong>{escape(self.title)}</strong> '
            f'<span style="opacity:.75">{escape(self.summary)}</span></div>{note}'
            f'<table style="{TABLE}">'
            f"<tbody>{''.join(map(_html_row, open_rows))}</tbody></table>{folded}</div>"
        )


def page(title: str, body: str) -> str:
    """A whole page around HTML: no script, no network."""
    return PAGE.format(title=escape(title), body=body)


def bars(counts: Sequence[int], edges: Sequence[float], what: str, unit: str) -> str:
    """A histogram as SVG: `counts[i]` things lie between `edges[i]` and `edges[i + 1]`."""
    width, height, foot = 480, 84, 18
    most, step = max(counts), width / len(counts)
    every = -(-len(edges) // 9)
    parts = []
    for i, number in enumerate(counts):
        tall = (height - foot - 4) * number / most
        if number:
            tall = max(tall, 1.5)
            between = f"{number:,} {what} of {edges[i]:,.0f} to {edges[i + 1]:,.0f} {unit}"
            parts.append(
                f'<rect x="{i * step + 1:.1f}" y="{height - foot - tall:.1f}" width="{step - 2:.1f}" '
                f'height="{tall:.1f}" fill="#2563eb" fill-opacity=".75"><title>{between}</title></rect>'
            )
    for i in range(0, len(edges), every):
        anchor = "start" if i == 0 else "end" if i == len(edges) - 1 else "middle"
        parts.append(f'<text x="{i * step:.1f}" y="{height - 4}" text-anchor="{anchor}">{_short(edges[i])}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" style="max-width:{width}px;display:block;margin:6px 0" '
        f'role="img" aria-label="{what} by {unit}" font-size="10.5" font-family="system-ui,sans-serif" '
        f'fill="currentColor" xmlns="http://www.w3.org/2000/svg">'
        f'<path d="M0,{height - foot}H{width}" stroke="currentColor" stroke-opacity=".35"/>{"".join(parts)}</svg>'
    )


def _short(number: float) -> str:
    for limit, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= limit:
            return f"{number / limit:g}{unit}"
    return f"{number:g}"


def _html_row(finding: Finding) -> str:
    colour = DOTS[finding.severity]
    bold = "font-weight:600;" if finding.severity in ("warning", "stop") else ""
    style = f"margin-top:3px;padding-left:10px;border-left:3px solid {colour}"
    advice = f'<div style="{style}">{escape(finding.advice)}</div>' if finding.advice else ""
    return (
        f'<tr style="{LINE}"><td style="{CELL}white-space:nowrap;{bold}">'
        f'<span aria-hidden="true" style="color:{colour}">&#9679;</span> {finding.severity}</td>'
        f'<td style="{CELL}white-space:nowrap;font-weight:600">{escape(finding.name)}</td>'
        f'<td style="{CELL}overflow-wrap:anywhere;width:100%">{escape(finding.told)}{advice}{finding.picture}</td></tr>'
    )
