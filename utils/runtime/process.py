"""Which process is that? A pid alone is not enough: pids are used again."""

import os
from pathlib import Path
from typing import Any


def identity(pid: int | None = None) -> dict[str, Any]:
    """Boot id, pid and start time of a process (default: this one); start is None where it is gone."""
    pid = pid or os.getpid()
    return {"boot": _read("/proc/sys/kernel/random/boot_id"), "pid": pid, "start": _start(pid)}


def is_same(process: dict[str, Any]) -> bool:
    """Whether the process with this identity still lives: same boot, same pid, same start."""
    return process.get("start") is not None and identity(int(process["pid"])) == process


def _start(pid: int) -> str | None:
    # The command's name, in brackets, may hold spaces: fields are counted from behind it.
    text = _read(f"/proc/{pid}/stat")
    if text:
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie is dead: nobody has asked yet how it ended
    if Path("/proc/self/stat").exists():
        return None
    try:  # macOS has no /proc: all we can tell is whether the pid is in use
        os.kill(pid, 0)
        return "unknown"
    except OSError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
