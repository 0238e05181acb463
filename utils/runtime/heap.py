"""Memory that was used once is used again: how the C library hands out memory while a model trains on a CPU."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
STEP = 1 << 26  # bytes that the heap grows by


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for its next allocations; whether that can be had (glibc only).

    By default glibc maps every large tensor anew and gives it back when it is freed, so each step of a training meets
    fresh pages, which the kernel clears one by one: a seventh of a small model's step, and more than a third at
    124M parameters (`benchmarks/heap.py`). What is kept is given back by `malloc_trim` and at the process's end.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(name, value) for name, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, STEP)))
