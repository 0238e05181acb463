"""Whether this machine can put walls around a process at all: asked of the kernel, not of the code under test."""

import ctypes
import sys

import pytest

LANDLOCK_CREATE_RULESET, ASK_VERSION = 444, 1


def can_wall() -> bool:
    """Whether the kernel has Landlock, without which nothing but a change of user keeps files out of reach."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(ASK_VERSION)) > 0


needs_walls = pytest.mark.skipif(not can_wall(), reason="this machine cannot wall off a process: no Landlock")
