"""Freed memory is used again instead of being mapped anew."""

import subprocess
import sys

import pytest

LOOP = """
import resource, sys
import torch
from utils.runtime.heap import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    print("not here")
    sys.exit()
torch.set_num_threads(1)
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)  # 48 MB: more than what glibc ever keeps by itself
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def faults(how: str) -> str:
    done = subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_pages_are_cleared_once_and_not_at_every_allocation():
    kept = faults("kept")
    if kept == "not here":
        pytest.skip("this C library has no mallopt")
    assert int(kept) < 1_000
    assert int(faults("by default")) > 10 * max(1_000, int(kept))
