"""Files that are whole or not there: atomic writes, fsync, sha256; knows nothing of runs."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def fsync_file(path: Path) -> None:
    """Put a file's bytes on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Put a folder's list of names on the disk. File systems that cannot (some FUSE) are left alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


# Errors of a disk, a quota or a mount that may be over in a moment.
PASSING = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOTCONN, errno.ESTALE, errno.EROFS, errno.EAGAIN, errno.EINTR,
           errno.ETIMEDOUT}  # fmt: skip
PAUSES = (0.05, 0.5)  # seconds before the second and the third try


def retried(action: Callable[[], Result]) -> Result:
    """What `action` gives back; where the disk fails it is done again, from its beginning, up to three times in all."""
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            time.sleep(pause)
    return action()


def write_atomic(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Replace a file in one instant: a reader sees the old bytes or the new ones, never a mixture.

    `durable` also puts them on the disk before the rename, so that a power cut keeps one of the two. A disk that fails
    for a moment is tried again.
    """
    retried(lambda: _write_atomic(path, data, durable))


def _write_atomic(path: Path, data: bytes | str, durable: bool) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        if durable:
            fsync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its keys: kept beside it, so that it can vouch for itself."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cache_dir() -> Path:
    """Where things that can be made again are kept: $TBT_CACHE, else the user's cache folder."""
    own = os.environ.get("TBT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformer-builder"


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a file that somebody else may have written, without being led elsewhere by it.

    Args:
        path: must be a plain file with this one name: a link, a pipe or a device could lead anywhere or never end.
        limit: most bytes it may have.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no plain file, has a second name, or is longer.
    """
    try:
        # Not waiting for the other end, in case it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise ValueError(f"{path} is not a plain file; it is not read") from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a plain file; it is not read")
    with os.fdopen(descriptor, "rb") as file:
        if found.st_nlink != 1:
            raise ValueError(f"{path} has {found.st_nlink} names; only a file of its own is read")
        data = file.read(limit + 1)  # not by its stated size: it may still grow
    if len(data) > limit:
        raise ValueError(f"{path} is longer than the {limit:,} bytes that are read")
    return data


def remove_tree(folder: Path) -> None:
    """Remove a folder that somebody else filled, however deep and with whatever modes; what resists stays.

    Folders are lifted to the top before they are emptied, so that neither the stack nor a path's length is a limit.
    """
    with suppress(OSError):
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    for inner in os.scandir(entry.path):
                        if inner.is_dir(follow_symlinks=False):
                            os.chmod(inner.path, 0o700)
                            os.rename(inner.path, os.path.join(folder, secrets.token_hex(16)))
                        else:
                            os.unlink(inner.path)
                    os.rmdir(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(folder)


SCRATCH = "tbt-scratch-"  # how the names of our temporary folders begin
YOUNG = 60.0  # seconds in which a new one may not be held yet


def new_scratch(name: str) -> Path:
    """A new temporary folder; those of processes that were killed are removed first. Whoever uses it holds it."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > YOUNG and (descriptor := hold(left, alone=True)) is not None:
                remove_tree(left)
                os.close(descriptor)
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{name}-"))


def hold(folder: Path, alone: bool = False) -> int | None:
    """Mark a folder as in use for as long as the descriptor given back is open; None if it is (`alone`: by anybody)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A new temporary folder for somebody else to fill, removed in the end by `remove_tree`."""
    folder = new_scratch(name)
    held = hold(folder)
    try:
        yield folder
    finally:
        remove_tree(folder)
        if held is not None:
            os.close(held)
