"""How many operations a second a device could do at most; knows no model. Imports torch only when asked."""

import json
import platform
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.runtime.files import cache_dir, read_regular, sha256_json, write_atomic

if TYPE_CHECKING:
    import torch

# Dense tensor-core rates in TFLOP/s as the vendor states them (half of what is printed "with sparsity"), for sums in
# fp32: (16 bits, TF32, fp32 without tensor cores), by the whole name the driver gives: a "Laptop GPU" is another card.
# Data center: the cards' data sheets, https://www.nvidia.com/en-us/data-center/; T4 and V100 have no TF32 and no bf16.
# GeForce: appendices of the whitepapers on the architectures GA102, Ada and RTX Blackwell; TF32 is no faster there.
CARDS = {
    "Tesla T4": (65, None, 8.1),
    "Tesla V100-SXM2-16GB": (125, None, 15.7),
    "Tesla V100-SXM2-32GB": (125, None, 15.7),
    "Tesla V100-PCIE-16GB": (112, None, 14),
    "Tesla V100-PCIE-32GB": (112, None, 14),
    "NVIDIA L4": (121, 60, 30.3),
    "NVIDIA L40S": (362, 183, 91.6),
    "NVIDIA A10": (125, 62.5, 31.2),
    "NVIDIA A10G": (70, 35, 35),
    "NVIDIA A100-PCIE-40GB": (312, 156, 19.5),
    "NVIDIA A100-SXM4-40GB": (312, 156, 19.5),
    "NVIDIA A100 80GB PCIe": (312, 156, 19.5),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5),
    "NVIDIA H100 80GB HBM3": (989, 494, 66.9),
    "NVIDIA H100 PCIe": (756, 378, 51),
    "NVIDIA H200": (989, 494, 66.9),
    "NVIDIA B200": (2250, 1125, 75),
    "NVIDIA GeForce RTX 3080": (59.5, 29.8, 29.8),
    "NVIDIA GeForce RTX 3090": (71, 35.6, 35.6),
    "NVIDIA GeForce RTX 4070": (58.3, 29.1, 29.1),
    "NVIDIA GeForce RTX 4080": (97.5, 48.7, 48.7),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
    "NVIDIA GeForce RTX 5070": (61.7, 30.9, 30.9),
    "NVIDIA GeForce RTX 5080": (112.6, 56.3, 56.3),
    "NVIDIA GeForce RTX 5090": (209.5, 104.8, 104.8),
}
NO_BF16 = ("Tesla T4", "Tesla V100")  # torch emulates it there
SIZES, GPU_SIZES = (512, 1024, 2048), (2048, 4096, 8192)  # of the square matrices that are multiplied
BOTH = ("fp32", "bf16")  # measured in turns where their ratio counts
TURNS = 4  # of each size: the best counts, because others use the machine too
UNDISTURBED = 0.8  # share of the threads' time that has to be ours for a measured rate to be remembered
SECONDS = 0.4  # that measuring takes, at most about
BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16", "arm_bf16", "sve_bf16", "svebf16"}  # as torch or Linux names them
FASTER = 1.3  # times as fast as fp32 is when bf16 is worth its rounding

_known: dict[Path, dict[str, float]] = {}  # measured in this process, by where it would be remembered


def matmul_peak(device: "torch.device", dtype_name: str) -> float:
    """FLOP/s of dense matrix products in `dtype_name` (fp32, bf16, fp16): the most that training could reach.

    For GPUs whose data sheet is known that is what the vendor states; fp32 is TF32 where torch is set to it. Others,
    and CPUs, are measured once for each number of threads, in less than half a second, and the rate remembered in the
    cache folder; where that cannot be written, or the cores were busy with other work, it is measured again next time.
    """
    import torch

    if device.type == "cuda" and (stated := _stated(torch.cuda.get_device_name(device), dtype_name, _tf32())):
        return stated
    together = device.type == "cpu" and dtype_name in BOTH and has_bf16_instructions()
    return _rates(device, BOTH if together else (dtype_name,))[dtype_name]


def gains_from_bf16(device: "torch.device") -> bool:
    """Whether matrix products of this CPU are enough faster in bf16; asked once, the answer is remembered."""
    if not has_bf16_instructions():
        return False
    rates = _rates(device, BOTH)
    return rates["bf16"] >= FASTER * rates["fp32"]


def has_bf16_instructions() -> bool:
    """Whether the processor multiplies bf16 numbers itself; torch would also do without, slowly."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        return _names_bf16(name for name, there in torch.cpu.get_capabilities().items() if there is True)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return _names_bf16(file.read().split())
    except OSError:
        return False


def _names_bf16(features: Iterable[str]) -> bool:
    return not BF16_FEATURES.isdisjoint(features)


def _tf32() -> bool:
    import torch

    return torch.get_float32_matmul_precision() != "highest"


def _stated(card: str, dtype_name: str, tf32: bool) -> float | None:
    """The vendor's number in FLOP/s; None for a card, or a format, that is not in the table."""
    if card not in CARDS or (dtype_name == "bf16" and card.startswith(NO_BF16)):
        return None
    half, tf, single = CARDS[card]
    return 1e12 * (half if dtype_name != "fp32" else tf if tf32 and tf else single)


def _rates(device: "torch.device", names: tuple[str, ...]) -> dict[str, float]:
    """FLOP/s by format, as remembered or as measured now."""
    import torch

    key = _key(device, names)
    path = cache_dir() / "peak" / f"{sha256_json(key)[:32]}.json"
    if path in _known:
        return _known[path]
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        rates = {name: float(json.loads(read_regular(path, 10_000))["rates"][name]) for name in names}
        if all(0 < rate < float("inf") for rate in rates.values()):
            return rates
    began, worked = time.perf_counter(), time.process_time()
    rates = _known[path] = _measure(device, names)
    wanted = torch.get_num_threads() * (time.perf_counter() - began)
    if device.type == "cpu" and time.process_time() - worked < UNDISTURBED * wanted:
        return rates  # others had the cores for a part of the time: better luck at the next run
    with suppress(OSError):  # a process behind walls has no cache to write
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"of": key, "rates": rates}, indent=2) + "\n", durable=False)
    return rates


def _key(device: "torch.device", names: tuple[str, ...]) -> dict[str, object]:
    """All that a measured rate depends on."""
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "formats": names,
        "tf32": device.type == "cuda" and _tf32(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Which processor, and what it can do: its name alone does not say, and a cache may be shared by machines."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        said = {line for line in file if line.startswith(("model name", "flags", "Features", "CPU part"))}
        return sha256_json(sorted(said))[:16]
    return platform.processor()


def _measure(device: "torch.device", names: tuple[str, ...]) -> dict[str, float]:
    """The best of some products of each format, larger ones as long as there are time and memory for them."""
    import torch

    best, begin = dict.fromkeys(names, 0.0), time.perf_counter()
    for size in SIZES if device.type == "cpu" else GPU_SIZES:
        try:
            took = _take_turns(size, device, best, begin + SECONDS)
        except (RuntimeError, MemoryError):
            if not all(best.values()):
                raise
            break
        # The next size is eight times the work: it is left out where two turns of it would not fit in the time.
        if time.perf_counter() - begin + 2 * 8 * took / TURNS > SECONDS:
            break
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def _take_turns(size: int, device: "torch.device", best: dict[str, float], end: float) -> float:
    """Improve `best` by products of this size, two turns at least and others before `end`; the seconds they took."""
    import torch

    formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    # No random numbers: whoever measures must not change what is drawn after.
    values = torch.linspace(-1, 1, size * size, device=device).view(size, size)
    pairs = {name: values.to(formats[name]) for name in best}
    start = time.perf_counter()
    for turn in range(TURNS):
        for name, matrix in pairs.items():
            began = time.perf_counter()
            _multiply(matrix, device)
            best[name] = max(best[name], 2 * size**3 / (time.perf_counter() - began))
        if turn and time.perf_counter() > end:
            break
    return time.perf_counter() - start


def _multiply(matrix: "torch.Tensor", device: "torch.device") -> None:
    import torch

    torch.mm(matrix, matrix)
    if device.type != "cpu":
        torch.accelerator.synchronize()
