"""Files that are whole or not there: atomic writes, fsync, sha256; knows nothing of runs."""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


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


def write_atomic(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Replace a file in one instant: a reader sees the old bytes or the new ones, never a mixture.

    `durable` also puts them on the disk before the rename, so that a power cut keeps one of the two.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        if durable:
            fsync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
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
