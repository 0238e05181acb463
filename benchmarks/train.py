"""Tokens per second of this package beside nanoGPT, transformers' Trainer and lightning on the same models.

    python benchmarks/train.py --nanogpt PATH [--shapes 0.8M,10.7M,124M] [--contenders NAMES] [--rounds 5] [--seconds 8]

Every measurement is a fresh process, so nothing of one reaches the next; contenders take turns inside a round, and
whose turn is first moves on from round to round. What is measured and how to read it: docs/benchmarks.md.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from chart import bars
from contenders.shapes import CONTENDERS, SHAPES
from contenders.table import describe, spread, table
from workplace import call, workplace

from utils.data.reading.stories import write_stories
from utils.runtime.device import cpu_cores

ROOT = Path(__file__).parents[1]
TEXT_SIZE = 1_000_000  # characters of stories where no text is given
PEAK_SECONDS = 1.5  # for each number format
Line = dict[str, Any]  # what one measurement printed


def prepare(folder: Path, text: str) -> None:
    """Write train.txt and val.txt, 90 % and 10 % of `text`, and train.bin: its character ids as uint16."""
    cut = int(len(text) * 0.9)
    alphabet = sorted(set(text))
    if len(alphabet) > min(shape.vocab_size for shape in SHAPES.values()):
        raise ValueError(
            f"--data has {len(alphabet)} different characters, and the models have 65 rows: use another text"
        )
    numbers = {character: i for i, character in enumerate(alphabet)}
    np.array([numbers[character] for character in text[:cut]], np.uint16).tofile(folder / "train.bin")
    (folder / "train.txt").write_text(text[:cut], encoding="utf-8", newline="")
    (folder / "val.txt").write_text(text[cut:], encoding="utf-8", newline="")


def measure(name: str, shape: str, seconds: float, options: argparse.Namespace, folder: Path) -> Line:
    """One measurement in a process of its own; what went wrong stands in its "error"."""
    words = [sys.executable, "-m", "benchmarks.contenders", name, "--shape", shape, "--seconds", str(seconds)]
    words += ["--threads", str(options.threads), "--device", options.device, "--data", str(folder)]
    words += ["--nanogpt", str(options.nanogpt.resolve())] if options.nanogpt else []
    words += [f"--set={word}" for word in options.set]
    settings = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(options.threads),
        "TBT_CACHE": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # the first round compiles, the others find it
        "PYTHONWARNINGS": "ignore",
    }
    if options.device == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""  # some libraries take a GPU wherever they see one
    where = {"name": name, "shape": shape}
    try:
        done = call(words, folder, settings, cwd=ROOT, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return {**where, "error": f"not done after {options.timeout} s"}
    if done.returncode or not done.stdout.strip():
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {**where, "error": f"exit code {done.returncode}: {last[0]}"}
    line: Line = json.loads(done.stdout.strip().splitlines()[-1])
    return line


def rounds(options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Every measurement in turn, each with the number of its round."""
    names = options.contenders
    for number in range(options.rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        turns = [("peak", options.shapes[0], min(PEAK_SECONDS, options.seconds))]
        turns += [(name, shape, options.seconds) for shape in options.shapes for name in order]
        for name, shape, seconds in turns:
            line = {"round": number, **measure(name, shape, seconds, options, folder)}
            speed = f"{line['tokens'] / line['seconds']:,.0f} tokens/s" if "tokens" in line else line.get("error", "")
            print(
                f"round {number + 1} of {options.rounds}: {shape if name != 'peak' else ''} {name} {speed}", flush=True
            )
            yield line


def report(lines: list[Line], options: argparse.Namespace, picture: str) -> str:
    """The Markdown page of all measurements."""
    parts = ["# Training speed, on the same models", "", *describe(lines, options), ""]
    parts += [f"![tokens per second]({picture})", ""]
    for shape in options.shapes:
        parts += [*table(shape, options.contenders, lines), ""]
    return "\n".join(parts)


def place(out: Path, lines: list[Line]) -> Path:
    """`out` with the device in its name, so that results of several lie side by side."""
    card = next((line["machine"].get("card") for line in lines if "machine" in line), None)
    device = re.sub(r"[^a-z0-9]+", "-", card.split(",")[0].lower()).strip("-") if card else "cpu"
    return out.with_name(f"{out.stem}-{device}{out.suffix or '.md'}")


def parse() -> argparse.Namespace:
    """The words of the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which models, with commas between")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which trainers, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement, warm-up left out")
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--nanogpt", type=Path, help="folder with nanoGPT's model.py")
    parser.add_argument("--data", type=Path, help="text to train on, 65 different characters at most; default: stories")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours, repeatable")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds after which a measurement is given up")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "train.md")
    options = parser.parse_args()
    for name, allowed in (("shapes", SHAPES), ("contenders", CONTENDERS)):
        given = getattr(options, name).split(",")
        if unknown := [word for word in given if word not in allowed]:
            parser.error(f"--{name}: {', '.join(unknown)} is none of {', '.join(allowed)}")
        setattr(options, name, given)
    if options.rounds < 1 or options.seconds <= 0 or options.threads < 1:
        parser.error("--rounds and --threads are 1 or more, --seconds more than 0")
    return options


def main() -> None:
    """Measure, print and write: a page, a picture, and every line as it came."""
    options = parse()
    text = options.data.read_text(encoding="utf-8") if options.data else write_stories(TEXT_SIZE)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    with workplace() as folder:
        prepare(folder, text)
        for line in rounds(options, folder):
            lines.append(line)
            page = place(options.out, lines)  # the first line is the peak's, which knows the device
            with page.with_suffix(".jsonl").open("a" if len(lines) > 1 else "w", encoding="utf-8") as raw:
                raw.write(json.dumps(line) + "\n")
    picture = page.with_suffix(".png")
    page.write_text(report(lines, options, picture.name), encoding="utf-8")
    panels = {shape: spread(shape, options.contenders, lines) for shape in options.shapes}
    if any(panels.values()):
        bars(picture, "Training speed on the same model", "tokens per second",
             {shape: group for shape, group in panels.items() if group})  # fmt: skip
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
