"""How fast it runs here: by the clock, in operations, and against what this machine can do."""

import statistics
import time
from collections.abc import Callable

import torch

from utils.validation.lengths import flops_of
from utils.validation.report import Check
from utils.validation.subject import Subject, backward, because

SECONDS = 1.0  # a measurement repeats itself for about this long
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is taken for the machine's peak


@because("Tokens per second decide what a night of training can do; the share of the peak says what is left to gain.")
def check_speed(subject: Subject) -> Check:
    """Median time of a forward pass and of forward + backward on one sequence, after warm-up."""
    length = subject.affordable(256)
    ids, targets = subject.tokens(1, length), subject.targets(1, length)
    forward = median_seconds(subject.device, lambda: subject.logits(ids))
    learns = any(param.requires_grad for param in subject.model.parameters())
    both = median_seconds(subject.device, lambda: backward(subject, ids, targets)) if learns else None
    flops, peak = flops_of(subject, length), peak_flops(subject)
    values = {
        "forward_ms": forward * 1e3, "tokens_per_second": length / forward, "length": length,
        "forward_flops_per_token": flops, "training_flops_per_token": 3 * flops, "peak_flops": peak,
        "share_of_peak": flops * length / forward / peak,
    }  # fmt: skip
    measured = f"forward {forward * 1e3:.1f} ms, {length / forward:,.0f} tokens/s"
    if both:
        values |= {"training_ms": both * 1e3, "training_tokens_per_second": length / both}
        measured += f"; forward + backward {both * 1e3:.1f} ms, {length / both:,.0f} tokens/s"
    measured += (
        f" at (1, {length}) on {subject.device.type}; {flops / 1e6:,.1f} MFLOP per token forward, three times as many "
        f"in training; forward runs at {values['share_of_peak']:.0%} of the {peak / 1e9:,.0f} GFLOP/s that one large "
        "matrix product reaches here"
    )
    return Check("speed", "pass", measured, "for information", values=values)


def peak_flops(subject: Subject) -> float:
    """Operations per second of one large product of matrices, in the type of the model's largest parameter."""
    params = [param for param in subject.model.parameters() if param.is_floating_point()]
    dtype = max(params, key=lambda param: param.numel()).dtype if params else torch.float32
    side = SIDE.get(subject.device.type, 1024)
    left, right = torch.randn(2, side, side, device=subject.device).to(dtype)
    return 2 * side**3 / min(_seconds(subject.device, lambda: left @ right, 0.25))  # the best: a peak


def median_seconds(device: torch.device, work: Callable) -> float:
    """How long `work` takes once it is warm; a GPU is waited for."""
    return statistics.median(_seconds(device, work))


def _seconds(device: torch.device, work: Callable, share: float = 1.0) -> list[float]:
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times, began = [], time.perf_counter()
    while len(times) < 12 and (len(times) < 4 or time.perf_counter() - began < share * SECONDS):
        sync()
        start = time.perf_counter()
        work()
        sync()
        times.append(time.perf_counter() - start)
    return times[2:]  # the first two warm up caches and kernels
