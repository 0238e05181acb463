"""When memory runs out: how that is told from other errors, what is given back, and a limit that is really kept."""

import contextlib
import ctypes
import errno
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

GB = 1_000_000_000
KEPT = "could not create a primitive"  # oneDNN
# How torch and what it calls say so where they raise a plain RuntimeError. oneDNN has one sentence for all that keeps
# it from making a primitive; at shapes that have worked before, what it lacks is memory.
WORDS = (
    "can't allocate memory",  # torch's CPU allocator on Linux and macOS
    "not enough memory: you tried to allocate",  # and on Windows
    "cannot allocate memory",  # mmap and everything else that asks the system
    "std::bad_alloc",
    "could not create a memory object",  # oneDNN
    KEPT,
    "cuda error: out of memory",  # from the driver, past torch's allocator
    "cuda out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "mps backend out of memory",
)
UNLIMITED = 1 << 62  # bytes: what cgroup v1 says where there is no limit is about this


class HalfStepped(RuntimeError):
    """Memory ran out while the optimizer was changing the weights: some are new and some are old."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, a library under it, Python or the system says that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def release(device: torch.device) -> None:
    """Give back to the system what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library that has no such thing
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def limited(gigabytes: float, device: torch.device, note: Callable[[str], None] = lambda words: None) -> Iterator[None]:
    """While this holds, what would take more than `gigabytes` (10^9 bytes) is refused, as an error that can be met.

    On a GPU it is the memory of the GPU, else all private memory of this process. 0 = what there is, which on a CPU is
    a limit, too: past the memory of the machine or its container the kernel would kill the process without a word.
    Where a limit that was asked for cannot be set, `note` is told. Raises ValueError for less than is taken already.
    """
    if device.type == "cuda":
        if gigabytes:
            whole = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * GB / whole), device)
        try:
            yield
        finally:
            if gigabytes:
                torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    taken, wanted = _own("VmData"), int(gigabytes * GB)
    if not gigabytes and taken is not None:
        # What is taken may never have been touched: where it is much of the machine, it says nothing of what is left.
        wanted = whole if (whole := _machine_bytes() or 0) > 2 * taken else 0
    if device.type != "cpu" or taken is None or not wanted:  # RLIMIT_DATA binds what is mapped on Linux only
        if gigabytes:
            note(f"train.memory_limit_gb={gigabytes:g} cannot be kept on this system ({sys.platform}, {device.type})")
        yield
        return
    if gigabytes and wanted <= taken:
        raise ValueError(
            f"train.memory_limit_gb={gigabytes:g} is less than is taken before the first step ({taken / GB:.2f} GB): "
            f"raise it, or 0 for what there is"
        )
    import resource  # not on every platform

    # Threads are started now: at the limit the one that cannot be started would end the process.
    torch.ones(1 << 20).add_(1.0).sum()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    highest = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY:
        highest = min(highest, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (highest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def free_bytes() -> int | None:
    """How much more memory this process can take without being refused, killed or swapped; None where nobody says.

    The least of what the machine, its container and the limits of this process leave.
    """
    found = [_meminfo("MemAvailable"), _container_free()]
    if sys.platform == "linux":
        import resource

        for kind, taken in ((resource.RLIMIT_DATA, _own("VmData")), (resource.RLIMIT_AS, _own("VmSize"))):
            limit = resource.getrlimit(kind)[0]
            if taken is not None and limit != resource.RLIM_INFINITY:
                found.append(max(0, limit - taken))
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _machine_bytes() -> int | None:
    """Memory of this machine, or of the container around this process if that is less."""
    known = [value for value in (_meminfo("MemTotal"), *(limit for limit, _ in _containers())) if value is not None]
    return min(known) if known else None


def _container_free() -> int | None:
    free = [max(0, limit - used) for limit, used in _containers()]
    return min(free) if free else None


def _containers() -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group with a limit around this process, as seen from in here."""
    root, found = Path("/sys/fs/cgroup"), []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            base = root / "memory" if kinds else root
            limit, used = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            )
            for folder in (base, *_below(base, place)):
                with contextlib.suppress(OSError, ValueError):  # "max", or not shown in here
                    most = int((folder / limit).read_text())
                    if most < UNLIMITED:
                        found.append((most, int((folder / used).read_text()) - _cached(folder)))
    return found


def _below(base: Path, place: str) -> list[Path]:
    parts = [part for part in place.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[: i + 1]) for i in range(len(parts))]


def _cached(folder: Path) -> int:
    """Of what a control group uses, what the kernel takes back before it refuses: files it has read."""
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _meminfo(name: str) -> int | None:
    return _kilobytes("/proc/meminfo", name)


def _own(name: str) -> int | None:
    return _kilobytes("/proc/self/status", name)


def _kilobytes(path: str, name: str) -> int | None:
    """The value in bytes of a line like `name:   123 kB`; None where there is no such file or line."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
