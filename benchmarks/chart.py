"""Pictures of benchmarks as PNG: bars with their spread, curves with a band; knows nothing of what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.validation.figures import COLOURS, DASHES, DPI, FAINT, INK, SMALL, TEXT, TITLE

OURS, PEERS = COLOURS[0], "#8c959f"
Spread = tuple[float, float, float]  # median, least, most
Band = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]  # x; median, least, most at each


def bars(path: Path, title: str, unit: str, panels: Mapping[str, Mapping[str, Spread]], ours: str = "ours") -> None:
    """Draw one panel of horizontal bars per group, side by side; whose name begins with `ours` stands out.

    A bar is as long as the median, its line reaches from the least to the most.
    """
    rows = max(map(len, panels.values()))
    figure, axes = _sheet(title, len(panels), 0.9 + 0.24 * rows)
    for ax, (name, group) in zip(axes, panels.items(), strict=True):
        places, spreads = range(len(group)), list(group.values())
        colours = [OURS if label.startswith(ours) else PEERS for label in group]
        ax.barh(places, [middle for middle, _, _ in spreads], color=colours, height=0.7)
        ax.hlines(places, [low for _, low, _ in spreads], [high for _, _, high in spreads], color=INK, linewidth=1)
        for place, (middle, _, high) in zip(places, spreads, strict=True):
            ax.annotate(f"{middle:,.0f}", (max(middle, high), place), (3, 0), textcoords="offset points", va="center",
                        fontsize=SMALL - 1, color=INK)  # fmt: skip
        ax.set_yticks(places, list(group), fontsize=SMALL)
        ax.set_ylim(len(group) - 0.4, -0.6)
        ax.set_xlim(0, 1.22 * max(high for _, _, high in spreads))
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        _label(ax, name, unit, "")
        ax.grid(axis="x", color=FAINT, linewidth=0.6)
    figure.savefig(path, format="png", facecolor="white")


def curves(path: Path, title: str, x_label: str, y_label: str, series: Mapping[str, Band], ours: str = "ours") -> None:
    """Draw a curve with a band from the least to the most for each name; those of ours are drawn thicker."""
    figure, (ax,) = _sheet(title, 1, 3.6)
    for index, (name, (x, middle, low, high)) in enumerate(series.items()):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        ax.plot(x, middle, dash, color=colour, linewidth=2.2 if name.startswith(ours) else 1.4, label=name)
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    _label(ax, "", x_label, y_label)
    ax.grid(color=FAINT, linewidth=0.6)
    ax.legend(fontsize=SMALL, frameon=False)
    figure.savefig(path, format="png", facecolor="white")


def _sheet(title: str, panels: int, height: float) -> tuple[Figure, Sequence[Any]]:
    """A white sheet with a title and `panels` places beside each other; sizes in inches."""
    figure = Figure(figsize=(max(6.2, 3.9 * panels), height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=TITLE, color=INK, x=0.01, ha="left", fontweight="bold")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _label(ax: Any, title: str, x_label: str, y_label: str) -> None:
    ax.set_title(title, fontsize=TEXT, color=INK, loc="left")
    ax.set_xlabel(x_label, fontsize=TEXT, color=INK)
    ax.set_ylabel(y_label, fontsize=TEXT, color=INK)
    ax.tick_params(labelsize=SMALL, colors=INK, length=0)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
