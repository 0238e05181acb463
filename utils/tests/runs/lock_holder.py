"""A real other process that holds the lock of a run folder, until it is told to go or killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from utils.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(lock.acquire(float(sys.argv[2])), flush=True)
sys.stdin.read()
"""
ASK = """
import sys, time
from pathlib import Path
from utils.runs.lock import is_locked
folder, seconds, asked, locked = Path(sys.argv[1]), float(sys.argv[2]), 0, 0
is_locked(folder)
print("ready", flush=True)
end = time.monotonic() + seconds
while time.monotonic() < end:
    asked, locked = asked + 1, locked + is_locked(folder)
print(asked, locked, flush=True)
"""


def start(code: str, folder: Path, *words: object) -> subprocess.Popen[str]:
    """A process that runs `code`; back when it has said that it is ready."""
    command = [sys.executable, "-c", code, str(folder), *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End it, however it stands."""
    process.kill()
    process.communicate()


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The folder's lock is held by the process given; killing it is allowed."""
    process = start(HOLD, folder, 0)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        end(process)
