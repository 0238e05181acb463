"""Which processor, which number format, how many threads; the only file that asks torch about hardware."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pick_device(wanted: str = "auto") -> "torch.device":
    """The device for `train.device`. Raises ValueError when a device asked for by name is not there."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there[wanted]:
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise ValueError(f"train.device={wanted} is not available here (available: {have}, or auto)")
    return torch.device(wanted)


def pick_precision(wanted: str, device: "torch.device") -> str:
    """fp32, bf16 or fp16 for `train.precision`; auto takes the fastest that trains well on the device.

    Raises ValueError for a format the device has no instructions for.
    """
    import torch

    # Without this flag a T4 claims bf16, which it only emulates, slowly.
    has_bf16 = device.type == "cpu" or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if wanted == "auto":
        return "fp32" if device.type != "cuda" else "bf16" if has_bf16 else "fp16"
    if wanted == "fp16" and device.type != "cuda":
        raise ValueError(f"train.precision=fp16 needs a CUDA GPU (device: {device.type}); use auto, bf16 or fp32")
    if wanted == "bf16" and not has_bf16:
        raise ValueError(f"train.precision=bf16 is not available on {describe(device)}; use auto, fp16 or fp32")
    return wanted


def describe(device: "torch.device") -> str:
    """A device in words: its name, and its memory or cores."""
    import torch

    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    return f"{device.type}, {cpu_cores()} cores"


def cpu_cores() -> int:
    """Cores this process may run on (a quota on their time, as some containers have, is not seen)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
