"""How far each trainer gets in the same seconds on the same text.

`python benchmarks/time_to_loss.py --task shakespeare-char --shape 0.8M --threads 1 --seconds 60 --nanogpt PATH`

Every contender gets the same ids and trains by its own recipe, each run in a process of its own, the contenders in turn
for every seed. The clock counts training alone: no start, no evaluation. Writes a table and a picture to
`benchmarks/results/`. With `--keep FILE`, a benchmark that was interrupted goes on where it was.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from against_clock import (
    RECIPES,
    RESULTS,
    SECONDS,
    USED,
    Job,
    do_job,
    do_jobs,
    failures,
    identify,
    interval,
    machine,
    ours,
    parser,
    spread,
    text_words,
    to_repeat,
)
from chart import Band, curves
from contenders.shapes import SHAPES
from peers import PUBLISHED, about, run_peer

from utils.runtime.files import write_atomic

TARGETS = {("shakespeare-char", "0.8M"): 1.904}  # nanoGPT's after all its 2,000 steps
SPLIT = {
    "shakespeare-char": "tiny Shakespeare in characters: the first 90 % trains, the last 10 % validates",
    "wikitext-bpe": "WikiText-2 in BPE tokens trained on the training side: its validation split trains and its test "
    "split validates (its training split is not used)",
}
Result = dict[str, Any]


def build_jobs(options: argparse.Namespace) -> list[Job]:
    """One job for each seed and contender. Raises ValueError for what cannot be run."""
    recipe = options.recipe or RECIPES / f"{options.shape}.yaml"
    words = text_words(options.task, options.data, SHAPES[options.shape].block_size)
    jobs = []
    for seed in options.seeds:
        for name in options.contenders:
            known = "" if name == "ours" else about(name, options.shape)
            job = Job(
                name, name, options.task, options.shape, seed, options.seconds, options.clock, options.threads,
                options.points, tuple(words), nanogpt=str(options.nanogpt or ""),
            )  # fmt: skip
            if name == "ours":
                job = replace(job, recipe=str(recipe), words=(*words, *options.set))
            jobs.append(replace(job, settings=identify(job, known)))
    return jobs


def seconds_to(target: float, curve: Sequence[Sequence[float]]) -> float | None:
    """When a curve of (seconds, steps, loss) first reaches a loss, on a straight line between two evaluations."""
    before: Sequence[float] | None = None
    for point in curve:
        if point[2] <= target:
            if before is None:
                return point[0]
            return before[0] + (point[0] - before[0]) * (before[2] - target) / (before[2] - point[2])
        before = point
    return None


def table(results: dict[str, list[Result]], target: float) -> list[str]:
    """One line for each contender."""
    lines = [
        "| contender | parameters | steps | tokens/s | seconds used | validation loss: median (least to most) "
        f"| mean, 95 % interval | seconds to {target:.3f} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        good = [result for result in found if "error" not in result]
        if not good:
            lines.append(f"| {name} | failed: {found[0]['error']} |" + " |" * 6)
            continue
        losses = [result["curve"][-1][2] for result in good]
        known = interval(losses)
        reached = [at for result in good if (at := seconds_to(target, result["curve"])) is not None]
        when = f"{spread(reached, '.1f')}, {len(reached)} of {len(good)} runs" if reached else "not reached"
        lines.append(
            f"| {name} | {good[0]['parameters']:,} | {middle(good, 'steps'):,.0f} "
            f"| {statistics.median(r['tokens'] / r['seconds'] for r in good):,.0f} | {middle(good, 'seconds'):.1f} "
            f"| {spread(losses)}{failures(found)} | {statistics.mean(losses):.3f}"
            f"{f', {known[0]:.3f} to {known[1]:.3f}' if known else ''} | {when} |"
        )
    return lines


def middle(found: Sequence[Result], what: str) -> float:
    """The median of a number that every result has."""
    return statistics.median(result[what] for result in found)


def bands(results: dict[str, list[Result]], target: float, seconds: float) -> dict[str, Band]:
    """What is drawn: the median over the seeds in a band from least to most, and the target as a line."""
    drawn: dict[str, Band] = {}
    for name, found in results.items():
        curves_ = [result["curve"] for result in found if "error" not in result]
        rows = list(zip(*curves_, strict=False))  # one for each evaluation that all its runs had
        losses = [[point[2] for point in row] for row in rows]
        at = [statistics.median(point[0] for point in row) for row in rows]
        if rows:
            drawn[name] = at, list(map(statistics.median, losses)), list(map(min, losses)), list(map(max, losses))
    drawn[f"loss {target:.3f}"] = [0.0, seconds], *([[target, target]] * 3)
    return drawn


def report(options: argparse.Namespace, jobs: Sequence[Job], results: dict[Job, Result]) -> str:
    """Markdown; the picture beside it."""
    by_name = {name: [results[job] for job in jobs if job.name == name] for name in options.contenders}
    good = [r for found in by_name.values() for r in found if "error" not in r]
    target = options.target or TARGETS.get((options.task, options.shape))
    if target is None:  # what nanoGPT ends at, or else the worst
        ends = {n: [r["curve"][-1][2] for r in found if "error" not in r] for n, found in by_name.items()}
        medians = {name: statistics.median(losses) for name, losses in ends.items() if losses}
        target = medians.get("nanogpt", max(medians.values(), default=0.0))
    block = SHAPES[options.shape].block_size
    title = f"{options.task}, {options.shape}, {options.threads} thread{'s' * (options.threads > 1)}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture = options.out.with_suffix(".png")
    x_label = f"training, {SECONDS[options.clock]}"
    curves(picture, title, x_label, "validation loss, nats per token", bands(by_name, target, options.seconds))
    counts = ""
    if good:
        sizes = good[0]
        counts = f" {sizes['train_tokens']:,} and {sizes['val_tokens']:,} tokens, {sizes['vocab']:,} different."
    lines = [
        f"# Time to loss: {title}",
        "",
        f"`python benchmarks/time_to_loss.py {to_repeat(options.given)}`",
        "",
        f"{SPLIT[options.task]}.{counts} After {options.seconds:g} {SECONDS[options.clock]}; evaluations and the start "
        f"are outside the clock. Loss in fp32 over the whole validation side in blocks of {block} that do not overlap. "
        f"Seeds: {', '.join(map(str, options.seeds))}. {machine(jobs[0])}.",
        "",
        *table(by_name, target),
        "",
        f"![Validation loss against seconds]({picture.name})",
        "",
        "The line is the median over the seeds, the band goes from the least to the most. The interval is Student's t "
        "of the mean.",
        "",
    ]
    for name in options.contenders:
        said = our_recipe(options) if name == "ours" else about(name, options.shape)
        ways = dict.fromkeys(r["made_with"] for r in by_name[name] if "made_with" in r)
        computed = f"; computed in {' and '.join(ways)}" if ways else ""
        lines.append(f"- **{name}**: {said}{computed}.")
    return "\n".join([*lines, ""])


def our_recipe(options: argparse.Namespace) -> str:
    """What is said of ours."""
    recipe = options.recipe or RECIPES / f"{options.shape}.yaml"
    more = f" with {', '.join(options.set)}" if options.set else ""
    return (
        f"this package's trainer with `{recipe.name}`{more}; its speed is measured first, in the same process and "
        f"outside the clock, and its schedule made as long as {USED:.0%} of the seconds allow"
    )


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    if sys.argv[1:] == ["--job"]:  # in a process of its own
        job = json.load(sys.stdin)
        job["words"] = tuple(job["words"])
        print(json.dumps(do_job(Job(**job), ours if job["contender"] == "ours" else run_peer)))
        return
    words = parser(__doc__ or "", seeds=(1, 2, 3, 4, 5))
    add = words.add_argument
    add("--shape", choices=PUBLISHED, default="0.8M")
    add("--contenders", type=lambda text: text.split(","), default=["ours", "nanogpt", "hf", "lightning"],
        help="ours, nanogpt, hf, lightning; -fitted, -bf16 or -compiled behind a peer's name changes it")  # fmt: skip
    add("--nanogpt", type=Path, help="a checkout of nanoGPT")
    add("--points", type=int, default=12, help="evaluations of each run, evenly spread over the seconds")
    add("--target", type=float, help="the loss whose time is asked for; otherwise what nanoGPT ends at")
    add("--recipe", type=Path, help="YAML of our settings instead of benchmarks/recipes/SHAPE.yaml")
    options = words.parse_args()
    options.given = sys.argv[1:]
    options.out = options.out or RESULTS / f"time_to_loss-{options.task}-{options.shape}.md"
    try:
        jobs = build_jobs(options)
    except ValueError as error:
        words.error(str(error))
    text = report(options, jobs, do_jobs(jobs, options.keep))
    write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
