"""Milliseconds per step of AdamW, of our Muon and of torch's, on the GPT shapes of `benchmarks/train.py`.

    python benchmarks/optimizers.py [--shapes 0.8M,10.7M,124M] [--rounds 20] [--threads 2] [--device cpu] [--out FILE]

The optimizers take turns on one model with the same gradients; medians. torch's Muon gets the matrices of the blocks
and has AdamW beside it for the rest, as ours has within. On a shared machine only the ratios of one call count.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contenders.shapes import SHAPES, Shape
from torch import nn

from utils.config.schema import ModelShape, TrainConfig
from utils.models.registry import build_model
from utils.runtime.device import cpu_cores, describe, pick_device
from utils.training.optim import block_matrices, build_optimizer

WARM = 3  # rounds that are not counted: states are made, kernels chosen
Step = Callable[[], object]


def ours(model: nn.Module, optimizer: str) -> Step:
    """One of `build_optimizer`'s, told to clip and to look for overflow, as in training."""
    made = build_optimizer(model, TrainConfig(optimizer=optimizer))  # type: ignore[arg-type]
    device = next(model.parameters()).device
    made.grad_scale, made.found_inf = torch.ones((), device=device), torch.zeros((), device=device)  # type: ignore[attr-defined]
    return made.step


def torch_muon(model: nn.Module) -> Step:
    """torch.optim.Muon and a fused AdamW."""
    matrices = list(block_matrices(model))
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    muon = torch.optim.Muon(matrices, lr=3e-3, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=3e-3, fused=True)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


def measure(shape: Shape, device: torch.device, rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    torch.manual_seed(0)
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    model = build_model("gpt", ModelShape(**{name: getattr(shape, name) for name in names})).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) / p.numel() ** 0.5
    steps = {"AdamW": ours(model, "adamw"), "Muon": ours(model, "muon")}
    if hasattr(torch.optim, "Muon"):
        steps["torch.optim.Muon"] = torch_muon(model)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(WARM + rounds):
        for name, step in steps.items():
            begin = _now(device)
            step()
            if i >= WARM:
                taken[name].append(_now(device) - begin)
    return {name: 1000 * statistics.median(times) for name, times in taken.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure, print and, with --out, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="a Markdown file, such as benchmarks/results/optimizers.md")
    options = parser.parse_args()
    names = options.shapes.split(",")
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"--shapes {','.join(unknown)}: there are {', '.join(SHAPES)}")
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    lines = [
        f"{describe(device)}, {options.threads} threads, torch {torch.__version__}, medians of {options.rounds}\n",
        "| model | optimizer | ms per step | to AdamW |\n|---|---|---|---|",
    ]
    for name in names:
        medians = measure(SHAPES[name], device, options.rounds)
        lines += [f"| {name} | {who} | {ms:.2f} | {ms / medians['AdamW']:.1f} |" for who, ms in medians.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(f"# Optimizers\n\n`python benchmarks/optimizers.py`: {text}", encoding="utf-8")


if __name__ == "__main__":
    main()
