"""Who holds a run folder: a lock the kernel drops when its holder dies, however it dies."""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType


class RunLock:
    """Held by the one process that may write a run folder; freed by the kernel even on SIGKILL."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self._descriptor: int | None = None

    def acquire(self, patience: float = 1.0) -> bool:
        """Take the lock; False when another process still holds it after `patience` seconds.

        Somebody asking `is_locked` holds it for an instant, too: so one failed try means nothing.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return False
                time.sleep(0.02)
            else:
                self._descriptor = descriptor
                return True

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two processes hold two locks."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "RunLock":
        if self._descriptor is None and not self.acquire():
            raise BlockingIOError(f"{self.path.parent} is being written by another process")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the run folder. The truth about "alive", whatever a pid says."""
    try:
        descriptor = os.open(folder / "run.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock: two readers asking at once must not see each other as the writer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(folder: Path) -> int | None:
    """The process that holds the run folder, by the kernel's own list; None where it keeps none or nobody does."""
    try:
        found = os.stat(folder / "run.lock")
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for fields in map(str.split, lines):
        if fields[1:2] + fields[3:4] == ["FLOCK", "WRITE"] and fields[5] == file and int(fields[4]) > 0:
            return int(fields[4])
    return None
