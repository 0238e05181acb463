"""What training does to each layer, as a heat map: drawn as SVG by hand, no files."""

import html
import math
from dataclasses import dataclass
from pathlib import Path

from utils.jobs.describe import plain
from utils.notebook.live_chart import svg_text, thin
from utils.runs.folder import Row, RunFolder, latest_run, open_run
from utils.runs.layers import layer_table, number

WIDTH, NAMES, RIGHT, TOP, BOTTOM = 720, 230, 20, 34, 62  # pixels; names of layers stand at the left
LINE, MOST_LINES, MOST_STEPS = 15, 60, 80  # pixels of a layer's line; the most that are drawn
MOST_NAME = 36  # characters of a layer's name
LOW, USUAL, HIGH = -5.0, -3.0, -1.0  # powers of ten of the update / weight: the ends of the colours, and their middle
COLD, MIDDLE, HOT = (37, 99, 235), (203, 213, 225), (220, 38, 38)  # learns nothing, usual, forgets


@dataclass(frozen=True)
class LayersView:
    """One run's layers as they stand on disk now: a table of the last step, and a picture of all of them."""

    run: RunFolder

    def __repr__(self) -> str:
        return plain(str(layer_table(self.run.layers())))

    def _repr_html_(self) -> str:
        rows = self.run.layers()
        table = plain(layer_table(rows)._repr_html_())
        folded = f"<details><summary>every number of the last step</summary>{table}</details>" if rows else table
        return heat_map(rows) + folded


def show_layers(path: str | Path | None = None) -> LayersView:
    """How far each step moved each layer of a run (default: the one active last)."""
    return LayersView(latest_run() if path is None else open_run(path))


def heat_map(rows: list[Row]) -> str:
    """The update-to-weight ratio by layer (a line each) and step (a column each); empty where there are no rows.

    `rows` are those of `RunFolder.layers`. Of a large model only matrices are drawn, and of many only some.
    """
    drawn, words = _chosen(rows)
    if not drawn:
        return ""
    ratios = {(row["name"], row["step"]): row["update_ratio"] for row in rows}
    steps = [step for step, _ in thin([(step, 0.0) for step in sorted({row["step"] for row in rows})], MOST_STEPS)]
    width, bottom = (WIDTH - NAMES - RIGHT) / len(steps), TOP + LINE * len(drawn)
    parts = [
        svg_text(
            NAMES, TOP - 18, f"update / weight{words}: a line for each layer, a column for each step", "start", size=11
        )
    ]
    for i, name in enumerate(drawn):
        parts.append(svg_text(NAMES - 8, TOP + LINE * i + 11, html.escape(_short(name)), "end", size=10))
        for j, step in enumerate(steps):
            if (name, step) in ratios:
                ratio = ratios[name, step]
                said = html.escape(f"{plain(name)}, step {step:,}: {number(ratio)}")
                parts.append(
                    f'<rect x="{NAMES + width * j:.1f}" y="{TOP + LINE * i}" width="{width + 0.3:.1f}" '
                    f'height="{LINE - 1}" fill="{colour(ratio)}"><title>{said}</title></rect>'
                )
    marks = sorted({round(k * (len(steps) - 1) / 5) for k in range(6)})
    parts += [svg_text(NAMES + width * (j + 0.5), bottom + 14, f"{steps[j]:,}", "middle", size=11) for j in marks]
    parts += _legend(bottom + 30)
    height = bottom + BOTTOM
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" style="max-width:{WIDTH}px" role="img" '
        'aria-label="update to weight ratio by layer and step" font-family="system-ui,sans-serif" font-size="11" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def colour(ratio: float | None) -> str:
    """Blue where a weight hardly moves, grey where it moves as usual, red where it is thrown about."""
    if ratio is None:
        return "none"
    power = min(max(math.log10(ratio) if ratio else LOW, LOW), HIGH)
    end, share = (COLD, (USUAL - power) / (USUAL - LOW)) if power < USUAL else (HOT, (power - USUAL) / (HIGH - USUAL))
    return "#" + "".join(f"{round(m + (e - m) * share):02x}" for m, e in zip(MIDDLE, end, strict=True))


def _chosen(rows: list[Row]) -> tuple[list[str], str]:
    """The names of the layers that are drawn, in their order, and words about those that are not."""
    matrices = {row["name"]: len(row["shape"]) > 1 for row in rows}
    names, words = list(matrices), ""
    if len(names) > MOST_LINES:
        names, words = [name for name in names if matrices[name]] or names, " (matrices only)"
    if len(names) > MOST_LINES:
        words = f" ({MOST_LINES} of {len(matrices):,})"
        names = [names[round(i * (len(names) - 1) / (MOST_LINES - 1))] for i in range(MOST_LINES)]
    return names, words


def _legend(y: float) -> list[str]:
    """The colours and what they stand for."""
    powers = [LOW + i * (HIGH - LOW) / 40 for i in range(41)]
    parts = [
        f'<rect x="{NAMES + 5 * i}" y="{y}" width="5.3" height="9" fill="{colour(10**power)}"/>'
        for i, power in enumerate(powers)
    ]
    for power, words in ((LOW, "1e-5: hardly moves"), (USUAL, "1e-3: usual"), (HIGH, "0.1: thrown about")):
        parts.append(svg_text(NAMES + 5 * 41 * (power - LOW) / (HIGH - LOW), y + 22, words, "middle", size=10))
    return parts


def _short(name: str) -> str:
    name = plain(name)
    return name if len(name) <= MOST_NAME else "…" + name[1 - MOST_NAME :]
