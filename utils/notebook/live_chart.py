"""The loss chart and the bar of where time goes, as SVG by hand: redrawn in a blink, sharp at any size, no files."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from utils.runs.progress import percent

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 126, 16, 40  # margins, in pixels
TRAIN, VAL, FLOOR = "#9db7e0", "#2563eb", "#d97706"  # readable on white and on black
PARTS = {
    "data": "#14b8a6",
    "forward": "#7fb2f5",
    "backward": "#2563eb",
    "optimizer": "#8b5cf6",
    "evaluation": "#d97706",
    "saving": "#db2777",
    "other": "#8a94a6",
}  # of a run's time, with colours to be told apart on white and on black
BAR = 10  # height, in pixels
DOT = "display:inline-block;width:9px;height:9px;border-radius:3px;margin-right:6px"
MOST_POINTS = 300
SMALLEST = 1e-12  # loss that a logarithmic axis has a place for
Point = tuple[float, float]  # step, loss in nats per token


def loss_chart(rows: Sequence[dict[str, Any]], floor: float | None = None, last_step: int = 0) -> str:
    """Training and validation loss by step, with the best possible loss as a line; empty before the first row.

    `rows` are those of a run folder's metrics; the loss axis is logarithmic, because what matters at the
    end of a run is small beside where it began.
    """
    train = [(row["step"], row["train/loss"]) for row in rows if row.get("train/loss") is not None]
    val = [(row["step"], row["val/loss"]) for row in rows if row.get("val/loss") is not None]
    losses = [loss for _, loss in train + val if loss > SMALLEST]
    if not losses:
        return ""
    floor = floor if floor and floor > SMALLEST else None
    low, high = min([*losses, *([floor] if floor else [])]), max(losses)
    x = Scale(0, max(last_step, max(step for step, _ in train + val)), LEFT, WIDTH - RIGHT)
    y = Scale(math.log(low * 0.9), math.log(high * 1.1), HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y, low * 0.9, high * 1.1)]
    if floor:
        at = y(math.log(floor))
        parts.append(f'<path d="M{LEFT},{at:.1f}H{WIDTH - RIGHT}" stroke="{FLOOR}" stroke-dasharray="5 4"/>')
    parts.append(_line(thin(train), x, y, TRAIN, 1.5))
    parts.append(_line(val, x, y, VAL, 2))
    parts += [_dot(point, x, y) for point in thin(val, 60) if point[1] > 0]
    parts += _labels(train, val, floor, y)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" style="max-width:{WIDTH}px" role="img" '
        'aria-label="loss by step" fill="none" font-family="system-ui,sans-serif" font-size="12" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def split_bar(shares: Mapping[str, float]) -> str:
    """Where the time of a run went: a bar of one piece for each part, and their names; empty without shares.

    `shares` are those of `utils.runs.progress.split`, each between 0 and 1.
    """
    shown = {part: shares[part] for part in PARTS if shares.get(part, 0) > 0}
    whole = sum(shown.values())
    if not whole:
        return ""
    pieces, names, at = [], [], 0.0
    for part, share in shown.items():
        width = WIDTH * share / whole
        title = f"<title>{part} {percent(share)}</title>"
        place = f'x="{at:.1f}" y="0" width="{max(0.5, width - 1.5):.1f}" height="{BAR}"'
        pieces.append(f'<rect {place} fill="{PARTS[part]}">{title}</rect>')
        at += width
        if share >= 0.005:  # what is less is drawn, and not worth its words
            dot = f'<i style="{DOT};background:{PARTS[part]}"></i>'
            names.append(f'<span style="white-space:nowrap">{dot}{part} <b>{100 * share:.0f} %</b></span>')
    said = ", ".join(f"{part} {percent(share)}" for part, share in shown.items())
    return (
        f'<div style="max-width:{WIDTH}px;margin:8px 0 10px">'
        f'<svg viewBox="0 0 {WIDTH} {BAR}" width="100%" height="{BAR}" preserveAspectRatio="none" role="img" '
        f'aria-label="time: {said}" style="display:block;border-radius:{BAR / 2:g}px;overflow:hidden" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(pieces)}</svg>'
        '<div style="display:flex;flex-wrap:wrap;gap:2px 12px;margin-top:6px;font-size:12px;line-height:1.5">'
        f"{''.join(names)}</div></div>"
    )


class Scale:
    """Maps numbers to pixels in a straight line."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.low, self.high, self.first = low, high, first
        self.per = (last - first) / ((high - low) or 1)

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) * self.per


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, evenly chosen, the last one always among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) between two losses, for a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [m * 10.0**power for power in range(first, last + 1) for m in (1, 2, 5)]
    return [mark for mark in marks if low <= mark <= high]


def svg_text(x: float, y: float, text: str, anchor: str, colour: str = "currentColor", size: int = 12) -> str:
    """`text`, escaped by the caller, at a place of a picture; `anchor` is the end that is there: start, middle, end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{text}</text>'


def _axes(x: Scale, y: Scale, low: float, high: float) -> list[str]:
    parts = []
    for mark in ticks(low, high):
        at = y(math.log(mark))
        parts.append(f'<path d="M{LEFT},{at:.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(svg_text(LEFT - 8, at + 4, f"{mark:g}", "end"))
    steps = max(1, round(x.high))
    unit = 10 ** math.floor(math.log10(steps))
    every = max(1, next(round(m * unit) for m in (0.2, 0.5, 1, 2) if steps / (m * unit) <= 6))
    for step in range(0, steps + 1, every):
        parts.append(svg_text(x(step), HEIGHT - BOTTOM + 18, f"{step:,}", "middle"))
    parts.append(svg_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "step", "middle"))
    parts.append(svg_text(LEFT - 40, TOP - 4, "loss, nats per token", "start"))
    return parts


def _labels(train: list[Point], val: list[Point], floor: float | None, y: Scale) -> list[str]:
    """The name of each line at its right end, moved apart where they would touch."""
    named = [
        (y(math.log(points[-1][1])), colour, f"{name} {points[-1][1]:.3f}")
        for points, colour, name in ((train, TRAIN, "train"), (val, VAL, "validation"))
        if points and points[-1][1] > 0
    ]
    if floor:
        named.append((y(math.log(floor)), FLOOR, f"best possible {floor:.3f}"))
    parts, free = [], -math.inf
    for at, colour, text in sorted(named):
        free = max(at + 4, free + 14)
        parts.append(svg_text(WIDTH - RIGHT + 6, free, text, "start", colour, size=11))
    return parts


def _line(points: Sequence[Point], x: Scale, y: Scale, colour: str, width: float) -> str:
    path = "L".join(f"{x(step):.1f},{y(math.log(loss)):.1f}" for step, loss in points if loss > 0)
    return f'<path d="M{path}" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>' if path else ""


def _dot(point: Point, x: Scale, y: Scale) -> str:
    return f'<circle cx="{x(point[0]):.1f}" cy="{y(math.log(point[1])):.1f}" r="2.5" fill="{VAL}"/>'
