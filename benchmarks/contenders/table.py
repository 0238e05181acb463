"""Measurements as Markdown: one table for each model, one paragraph on the machine. Imports no torch."""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from .shapes import SHAPES, is_ours

Line = dict[str, Any]  # what one measurement printed, with its round
HEAD = (
    "contender", "precision", "tokens/s", "x best peer", "x best peer of this precision", "x nanoGPT compiled",
    "GFLOP/s", "of the peak", "memory", "warm-up s",
)  # fmt: skip


def rates(name: str, shape: str, lines: Sequence[Line]) -> dict[int, float]:
    """Tokens per second in each round, where it did not fail."""
    return {
        line["round"]: line["tokens"] / line["seconds"]
        for line in lines
        if (line["name"], line["shape"]) == (name, shape) and "tokens" in line
    }


def spread(shape: str, names: Sequence[str], lines: Sequence[Line]) -> dict[str, tuple[float, float, float]]:
    """Median, least and most tokens per second of everyone that was measured."""
    found = {name: list(rates(name, shape, lines).values()) for name in names}
    return {name: (statistics.median(all_), min(all_), max(all_)) for name, all_ in found.items() if all_}


def table(shape: str, names: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """The lines of a table, after its heading, and below it whoever could not be measured and why.

    A ratio is the median over the rounds of the ratio within one round, so that a slow minute of the machine touches
    both sides of it.
    """
    size = SHAPES[shape]
    out = [
        f"## {shape}: {size.n_layer} layers, {size.n_head} heads, {size.n_embd} wide, "
        f"block {size.block_size}, batch {size.batch_size}",
        "",
    ]
    mine = [line for line in lines if line["shape"] == shape]
    speed = {name: statistics.median(all_) for name in names if (all_ := rates(name, shape, lines).values())}
    used = {line["name"]: line["precision"] for line in mine if "tokens" in line}
    peers = [name for name in speed if not is_ours(name)]
    peaks = _peaks(lines)
    if speed:
        out += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name in speed:
        own = rates(name, shape, lines)
        done = [line for line in mine if line["name"] == name and "tokens" in line]
        flops = speed[name] * done[0]["flops_per_token"]
        peak = peaks.get(used[name])
        best = max(peers, key=speed.__getitem__, default=None)
        alike = max((peer for peer in peers if used[peer] == used[name]), key=speed.__getitem__, default=None)
        cells = [
            name,
            used[name] + _compiled(done),
            f"{speed[name]:,.0f} ({min(own.values()):,.0f}..{max(own.values()):,.0f})",
            *(_ratio(own, peer, shape, lines) for peer in (best, alike, "nanogpt-compiled")),
            f"{flops / 1e9:,.0f}",
            f"{100 * flops / peak:.0f} %" if peak else "-",
            _memory(done),
            _warm_up(done),
        ]
        out.append("| " + " | ".join(cells) + " |")
    out += _failures(mine)
    counts = {line["name"]: line["parameters"] for line in mine if "tokens" in line}
    if counts:
        out += ["", "Parameters trained: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + "."]
    return out


def describe(lines: Sequence[Line], options: argparse.Namespace) -> list[str]:
    """What was measured, where, and with what."""
    said = next((line for line in lines if "machine" in line), {"machine": {}, "versions": {}})
    where = "; ".join(f"{key}: {value}" for key, value in said["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in said["versions"].items())
    peaks = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in _peaks(lines).items())
    notes = {line["name"]: line["note"] for line in lines if line.get("note")}
    return [
        f"{options.rounds} rounds of {options.seconds:g} s each on {options.device}, contenders in turn, every "
        "measurement a fresh process. Medians (least..most); a ratio is the median of the ratios within a round.",
        "",
        f"Machine: {where}. Versions: {versions}. Matrix products here (median over the rounds): {peaks or 'unknown'}.",
        "",
        "FLOPs per token: 6 N + 12 L T C (PaLM, appendix B), the same for all. Warm-up: first round, and the median of "
        "the later ones, which find what the first has compiled. Memory: the process's largest, "
        + ("and the card's." if options.device == "cuda" else "libraries included."),
        *(["", "Settings of ours: " + ", ".join(options.set) + "."] if options.set else []),
        *(["", "Notes: " + "; ".join(f"{name}: {note}" for name, note in notes.items()) + "."] if notes else []),
    ]


def _peaks(lines: Sequence[Line]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, rate in line.get("peak", {}).items():
            found.setdefault(name, []).append(rate)
    return {name: statistics.median(all_) for name, all_ in found.items()}


def _ratio(own: dict[int, float], peer: str | None, shape: str, lines: Sequence[Line]) -> str:
    other = rates(peer, shape, lines) if peer else {}
    both = [own[number] / other[number] for number in own if number in other]
    return f"{statistics.median(both):.2f}" if both else "-"


def _compiled(done: Sequence[Line]) -> str:
    count = sum(line.get("compiled", False) for line in done)
    return "" if not count else ", compiled" if count == len(done) else f", compiled in {count} of {len(done)} rounds"


def _memory(done: Sequence[Line]) -> str:
    words = f"{max(line['peak_rss'] for line in done) / 1e9:.2f} GB"
    card = [line["peak_cuda"] for line in done if "peak_cuda" in line]
    return f"{words}, card {max(card) / 1e9:.2f} GB" if card else words


def _warm_up(done: Sequence[Line]) -> str:
    first, *later = [line["warm_up_seconds"] for line in sorted(done, key=lambda line: line["round"])]
    return f"{first:.1f} / {statistics.median(later):.1f}" if later else f"{first:.1f}"


def _failures(mine: Sequence[Line]) -> list[str]:
    failed: dict[tuple[str, str], list[int]] = {}
    for line in mine:
        if "error" in line:
            failed.setdefault((line["name"], line["error"]), []).append(line["round"] + 1)
    said = [
        f"- {name}, not measured in round {', '.join(map(str, numbers))}: {error}"
        for (name, error), numbers in failed.items()
    ]
    return ["", *said] if said else []
