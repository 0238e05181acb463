"""Which processor, which number format, how many threads; the only file that asks torch about hardware."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.runtime.peak import gains_from_bf16, has_bf16_instructions

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


def pick_precision(wanted: str, device: "torch.device", *, gains: bool = True, began: str | None = None) -> str:
    """fp32, bf16 or fp16 for `train.precision`; auto takes the fastest that trains well on the device.

    On a CPU that is bf16 where the processor has instructions for it, its products are at least 1.3 times as fast, and
    `gains` says that the model is one whose steps are products in the main. `began` is what the run was started with:
    auto stays at it wherever the device has it. Raises ValueError for a format that the device does not have; a CPU has
    bf16 also without instructions for it, slowly.
    """
    has_bf16 = device.type == "cpu" or multiplies_bf16(device)  # without instructions a CPU only takes longer
    has = {"fp32": True, "bf16": has_bf16, "fp16": device.type == "cuda"}
    if wanted == "auto" and began is not None and has.get(began):
        return began
    if wanted == "auto" and device.type == "cpu":
        return "bf16" if gains and gains_from_bf16(device) else "fp32"
    if wanted == "auto":
        return "fp32" if device.type != "cuda" else "bf16" if has_bf16 else "fp16"
    if wanted == "fp16" and not has["fp16"]:
        raise ValueError(f"train.precision=fp16 needs a CUDA GPU (device: {device.type}); use auto, bf16 or fp32")
    if wanted == "bf16" and not has_bf16:
        raise ValueError(f"train.precision=bf16 is not available on {describe(device)}; use auto, fp16 or fp32")
    return wanted


def multiplies_bf16(device: "torch.device") -> bool:
    """Whether the hardware has instructions for products in bf16, so that torch need not emulate them."""
    import torch

    if device.type == "cpu":
        return has_bf16_instructions()
    # Without this flag a T4 claims bf16, which it only emulates, slowly.
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def describe(device: "torch.device") -> str:
    """A device in words: its name, and its memory or cores."""
    import torch

    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    return f"{device.type}, {cpu_cores()} cores"


def peak_memory(device: "torch.device") -> int:
    """The most memory held at once so far, in bytes: of the GPU by torch's tensors, else of the whole process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cpu_cores() -> int:
    """Cores this process may keep busy: those it may run on, or as many as its container's quota of time pays for."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    paid = cpu_quota()
    return there if paid is None else max(1, min(there, int(paid)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The least quota of CPU time among this process's control groups, in cores; None where there is none.

    Reads version 2 (cpu.max) and 1 (cpu.cfs_quota_us) of Linux's control groups, the files below `root`.
    """
    quotas = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        _, controllers, inside = line.split(":", 2) if line.count(":") > 1 else ("", "", "")
        if not controllers:
            mounted = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mounted = root / "sys/fs/cgroup" / controllers
        else:
            continue
        group = mounted / inside.strip("/")
        # A container may see its group's path of outside, and only what is mounted of it: the folders above count, too.
        for folder in (group, *group.parents):
            quotas += _quota_of(folder)
            if folder == mounted:
                break
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (group / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    return []
