"""What each change of our settings is worth at equal seconds, or with `--steps` at equal steps.

`python benchmarks/ablation.py --base benchmarks/recipes/0.8M.yaml --changes CHANGES.yaml --seconds 60 --seeds 1,2,3`

A change is `key=value,key=value`, or every entry of a YAML file: `name: {key: value, ...}`. The base and the changes
take turns, seed by seed, each run in a process of its own with its schedule as long as its own speed allows.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from against_clock import (
    RESULTS,
    SECONDS,
    Job,
    do_jobs,
    failures,
    identify,
    interval,
    machine,
    our_config,
    parser,
    spread,
    text_words,
    to_repeat,
)

from utils.config.load import flatten, load_config
from utils.runtime.files import write_atomic


def read_changes(given: Sequence[str]) -> dict[str, list[str]]:
    """Settings as words by the change's name. Raises ValueError for a file that holds something else."""
    changes: dict[str, list[str]] = {}
    for item in given:
        if "=" in item:
            changes[item] = item.split(",")
            continue
        try:
            found = yaml.safe_load(Path(item).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(
                f"--changes {item}: neither key=value nor a YAML file that can be read ({error})"
            ) from None
        if not isinstance(found, dict) or not all(isinstance(settings, dict) for settings in found.values()):
            raise ValueError(f"--changes {item}: it must hold `name: {{key: value, ...}}` entries")
        for name, settings in found.items():
            changes[str(name)] = [f"{key}={json.dumps(value)}" for key, value in flatten(settings).items()]
    return changes


def build_jobs(options: argparse.Namespace) -> list[Job]:
    """The base and every change for each seed. Raises ValueError for settings that cannot be used."""
    base = load_config(file=options.base, overrides=["data.seq_len=1", *options.set])  # 1 fits any model
    words = (*text_words(options.task, options.data, base.model.shape.block_size), *options.set)
    lines = {"base": [], **read_changes(options.changes)}
    jobs = []
    for seed in options.seeds:
        for name, more in lines.items():
            job = Job(
                name, "ours", options.task, options.base.stem, seed, options.seconds, options.clock, options.threads, 1,
                (*words, *more), str(options.base), steps=options.steps,
            )  # fmt: skip
            our_config(job)
            jobs.append(replace(job, settings=identify(job)))
    return jobs


def table(jobs: Sequence[Job], results: dict[Job, dict[str, Any]]) -> list[str]:
    """The base, then each change beside it; a difference is of two runs with the same seed."""
    lines = [
        "| what | parameters | steps | validation loss: median (least to most) | difference to base, 95 % interval "
        "| tokens/s to base |",
        "|---|---|---|---|---|---|",
    ]
    base = {job.seed: results[job] for job in jobs if job.name == "base"}
    for name in dict.fromkeys(job.name for job in jobs):
        found = {job.seed: results[job] for job in jobs if job.name == name}
        good = {seed: result for seed, result in found.items() if "error" not in result}
        if not good:
            lines.append(f"| {name} | failed: {next(iter(found.values()))['error']} |" + " |" * 4)
            continue
        both = [(result, base[seed]) for seed, result in good.items() if "error" not in base[seed]]
        gaps = [mine["curve"][-1][2] - other["curve"][-1][2] for mine, other in both]
        speeds = [mine["tokens"] / mine["seconds"] * other["seconds"] / other["tokens"] for mine, other in both]
        losses = [result["curve"][-1][2] for result in good.values()]
        known = interval(gaps)
        gap = f"{statistics.mean(gaps):+.3f}" if gaps and name != "base" else ""
        gap += f", {known[0]:+.3f} to {known[1]:+.3f}" if gap and known else ""
        loss = spread(losses) + failures(list(found.values()))
        lines.append(
            f"| {name} | {next(iter(good.values()))['parameters']:,} "
            f"| {statistics.median(r['steps'] for r in good.values()):,.0f} | {loss} | {gap} "
            f"| {f'{statistics.median(speeds):.2f}' if speeds else ''} |"
        )
    return lines


def main() -> None:
    """Run what is missing, then write the table."""
    words = parser(__doc__ or "", seeds=(1, 2, 3))
    add = words.add_argument
    add("--base", type=Path, required=True, help="YAML of settings, such as benchmarks/recipes/0.8M.yaml")
    add("--changes", nargs="+", required=True, metavar="FILE|KEY=VALUE,...", help="what is compared with the base")
    add("--steps", type=int, default=0, help="of each run, however long they take; default: as many as --seconds allow")
    options = words.parse_args()
    if options.steps:
        options.seconds = math.inf
    try:
        jobs = build_jobs(options)
    except ValueError as error:
        words.error(str(error))
    lines = table(jobs, do_jobs(jobs, options.keep))
    length = f"{options.steps:,} steps" if options.steps else f"{options.seconds:g} {SECONDS[options.clock]}"
    head = [
        f"# What each change is worth: {options.base.stem}, {options.task}",
        "",
        f"`python benchmarks/ablation.py {to_repeat(sys.argv[1:])}`",
        "",
        f"Validation loss after {length}, evaluation aside; base: "
        f"`{options.base.name}`{f' with {chr(44).join(options.set)}' if options.set else ''}. "
        f"Seeds: {', '.join(map(str, options.seeds))}. "
        "A difference is between runs of the same seed; its interval is Student's t. Below 0 is better. "
        f"{machine(jobs[0])}.",
        "",
    ]
    text = "\n".join([*head, *lines, ""])
    write_atomic(options.out or RESULTS / f"ablation-{options.task}-{options.base.stem}.md", text)
    print(text)


if __name__ == "__main__":
    main()
