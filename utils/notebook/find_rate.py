"""`find_rate(config)` for a notebook cell: which learning rate suits these settings, as a picture."""

import math
from dataclasses import dataclass

from IPython.display import display

from utils.config.schema import RunConfig
from utils.jobs.find_rate import find_rate as ask
from utils.notebook.display import Shown
from utils.notebook.live_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, TRAIN, VAL, WIDTH, Scale, svg_text
from utils.notebook.train import DataLine, Nowhere
from utils.training.rate_curve import HIGHEST, LOWEST, RULE, STEPS, RateCurve

CHOSEN = "#d97706"  # as the live chart's floor: readable on white and on black


@dataclass(frozen=True)
class RateView:
    """What a range test found."""

    curve: RateCurve

    def __repr__(self) -> str:
        return str(self.curve)

    def _repr_html_(self) -> str:
        found = self.curve.suggestion
        words = "no rate made the loss smaller" if found is None else f"train.learning_rate={found:g} ({RULE})"
        return f'<div style="font-size:13px;margin:4px 0"><b>suggestion</b>: {words}</div>{rate_chart(self.curve)}'


def find_rate(config: RunConfig, steps: int = STEPS, low: float = LOWEST, high: float = HIGHEST) -> RateView:
    """Train a new model for `steps` steps while the rate rises from `low` to `high`; no run is changed.

    Raises ValueError (the request is wrong) or RuntimeError (it failed) with the reason.
    """
    line = DataLine(display(Shown("starting ..."), display_id=True) or Nowhere())
    try:
        return RateView(ask(config, steps, low, high, line))
    finally:
        line.clear()


def round_marks(low: float, high: float) -> list[float]:
    """A few round numbers (1, 2 or 5 times a power of ten apart) from `low` up to `high`, which is above it."""
    unit = 10.0 ** math.floor(math.log10(high - low))
    apart = next(m * unit for m in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (m * unit) <= 6)
    return [i * apart for i in range(math.ceil(low / apart), math.floor(high / apart) + 1)]


def rate_chart(curve: RateCurve) -> str:
    """Loss and smoothed loss by learning rate, both axes of which are logarithmic, as SVG."""
    smoothed = curve.smoothed
    low, high = min(*curve.losses, *smoothed), max(smoothed[0], curve.losses[0]) * 1.15  # what broke down leaves it
    high = max(high, low + 1e-9)
    x = Scale(math.log10(curve.rates[0]), math.log10(curve.rates[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = []
    for loss in round_marks(low, high):
        parts.append(f'<path d="M{LEFT},{y(loss):.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity=".15"/>')
        if y(loss) > TOP + 8:  # above is the name of the axis
            parts.append(svg_text(LEFT - 8, y(loss) + 4, f"{loss:.6g}", "end"))
    for power in range(math.ceil(x.low - 1e-9), math.floor(x.high + 1e-9) + 1):
        parts.append(svg_text(x(power), HEIGHT - BOTTOM + 18, f"{10.0**power:g}", "middle"))
    parts.append(svg_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "learning rate", "middle"))
    parts.append(svg_text(LEFT - 40, TOP - 4, "loss, nats per label", "start"))
    for losses, colour, width in ((curve.losses, TRAIN, 1.0), (smoothed, VAL, 2.0)):
        points = [
            f"{x(math.log10(rate)):.1f},{y(min(loss, high)):.1f}"
            for rate, loss in zip(curve.rates, losses, strict=True)
        ]
        parts.append(f'<path d="M{"L".join(points)}" stroke="{colour}" stroke-width="{width}"/>')
    if curve.suggestion is not None:
        at = x(math.log10(curve.suggestion))
        parts.append(f'<path d="M{at:.1f},{TOP}V{HEIGHT - BOTTOM}" stroke="{CHOSEN}" stroke-dasharray="5 4"/>')
        parts.append(svg_text(at + 6, TOP + 10, f"suggestion {curve.suggestion:g}", "start", CHOSEN))
    parts.append(svg_text(WIDTH - RIGHT + 6, TOP + 10, "loss", "start", TRAIN))
    parts.append(svg_text(WIDTH - RIGHT + 6, TOP + 26, "smoothed", "start", VAL))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" style="max-width:{WIDTH}px" role="img" '
        'aria-label="loss by learning rate" fill="none" font-family="system-ui,sans-serif" font-size="12" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
