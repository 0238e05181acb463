"""What keeping freed memory is worth: `python benchmarks/heap.py [--rounds 5] [--steps 10] [--threads N]`.

One step of a GPT in bf16 with the C library's own habits and with `keep_freed_memory`, each in a process of its own, in
alternation. Medians and the ratio go to benchmarks/results/heap.md and to the screen.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from contenders.shapes import SHAPES

from utils.config.schema import ModelShape, TrainConfig
from utils.data.batching.batches import TrainBatches
from utils.data.batching.tasks import TaskBatches
from utils.models.registry import build_model
from utils.runtime.device import cpu_cores
from utils.runtime.heap import keep_freed_memory
from utils.training.step import Stepper

RESULT = Path(__file__).parent / "results" / "heap.md"


def measure(name: str, kept: bool, steps: int, threads: int) -> float:
    """Median seconds of a step, in this process."""
    if kept and not keep_freed_memory():
        raise SystemExit("this C library has no mallopt")
    torch.set_num_threads(threads)
    shape = SHAPES[name]
    sizes = {key: getattr(shape, key) for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, 200_000).astype(np.uint16)
    batches = TaskBatches(TrainBatches(ids, shape.block_size, shape.batch_size, 1))
    config = TrainConfig(optimizer="adamw", batch_size=shape.batch_size)
    stepper = Stepper(build_model("gpt", ModelShape(**sizes)), config, batches, torch.device("cpu"), "bf16")
    seconds = []
    for step in range(steps + 3):
        begin = time.perf_counter()
        stepper.step(step, 1e-3)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[3:])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "KEPT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.one[1] == "1", options.steps, options.threads)))
        return
    lines = [
        "# Memory that is kept", "",
        f"`python benchmarks/heap.py --rounds {options.rounds} --steps {options.steps} --threads {options.threads}`: "
        f"one step of a GPT in bf16, seconds, median of {options.rounds} processes each, in alternation; torch "
        f"{torch.__version__}. On a shared machine only the ratios hold.", "",
        "| shape | as the C library does | kept | ratio |", "|---|---|---|---|",
    ]  # fmt: skip
    for name in SHAPES:
        found: dict[str, list[float]] = {"0": [], "1": []}
        for _ in range(options.rounds):
            for kept, times in found.items():
                command = [sys.executable, __file__, "--one", name, kept, "--steps", str(options.steps)]
                done = subprocess.run(
                    [*command, "--threads", str(options.threads)], capture_output=True, text=True, check=True
                )
                times.append(json.loads(done.stdout))
        plain, kept_seconds = (statistics.median(times) for times in found.values())
        lines.append(f"| {name} | {plain:.4f} | {kept_seconds:.4f} | {plain / kept_seconds:.2f} |")
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
