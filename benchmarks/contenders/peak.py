"""How fast matrix products are here, and what "here" is: the yardstick of the model FLOPs utilisation."""

import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "accelerate", "lightning")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def measure(device: str, seconds: float) -> dict[str, Any]:
    """FLOP/s of square products in fp32 (on a GPU with TF32 allowed) and bf16: the best size's median."""
    torch.backends.cuda.matmul.allow_tf32 = True
    sizes = (4096, 8192) if device == "cuda" else (768, 1024, 2048)
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = {
        name: max(_rate(device, dtype, size, seconds / len(sizes)) for size in sizes) for name, dtype in formats.items()
    }
    return {"peak": rates, "machine": machine(device), "versions": versions()}


def _rate(device: str, dtype: torch.dtype, size: int, seconds: float) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    for _ in range(2):  # warm up
        a @ b
    while sum(times) < seconds or len(times) < 5:
        begin = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times)


def machine(device: str) -> dict[str, str]:
    """What computes: the processor with what it can do, the card where one is used."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    told = dict(map(_pair, lines))
    there = told.get("flags", "").split()
    said = {
        "processor": told.get("model name", "unknown"),
        "instructions": ", ".join(flag for flag in CPU_FLAGS if flag in there) or "unknown",
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        said = {"card": f"{card.name}, {card.total_memory / 2**30:.0f} GiB", **said}
    return said


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def versions() -> dict[str, str]:
    """Of every library that takes part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
