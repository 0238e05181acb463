"""Tries every wall around this process for real, as an intruder would. Knows no models and puts up nothing itself.

Each trial must be refused by the kernel: an attempt that fails for any other reason counts as having got through.
"""

import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

ESSENTIAL = ("network", "private files", "writing outside", "other processes", "new privileges")
REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT)

Trial = Callable[[], object]


@dataclass(frozen=True)
class Wall:
    """What was tried, whether every attempt was refused, and what happened."""

    wall: str
    stands: bool
    how: str


def try_walls(parent: int, canary: str, memory_bytes: int | None) -> list[Wall]:
    """Try them all.

    Args:
        parent: the process that must be out of reach.
        canary: a folder outside of everything allowed, with a file `private` (mode 600) and a file `open` (mode 644).
        memory_bytes: the limit to be exceeded; None: there is none.
    """
    if sys.platform != "linux":
        return [Wall(name, False, f"nothing to build it with on {sys.platform}") for name in ESSENTIAL]
    trials: dict[str, dict[str, Trial]] = {
        "network": {"TCP": _tcp, "UDP": _udp, "local socket": _local_socket},
        "private files": {"read": lambda: _read(f"{canary}/private")},
        "writing outside": {
            "create": lambda: _create(f"{canary}/new"),
            "append": lambda: os.close(os.open(f"{canary}/private", os.O_WRONLY | os.O_APPEND)),
            "delete": lambda: os.unlink(f"{canary}/victim"),
        },
        "other processes": {
            "environment": lambda: _read(f"/proc/{parent}/environ"),
            "signal": lambda: os.kill(parent, 0),
            "memory": lambda: _read_memory(parent),
        },
        "new privileges": {"user 0": _become_root, "namespace": _new_namespace, "status": _status},
        "open files": {"read": lambda: _read(f"{canary}/open"), "link": lambda: _link(canary)},
        "new programs": {"fork": _fork, "exec": _exec},
    }
    walls = [_try(name, attempts) for name, attempts in trials.items()]
    return [*walls, _try_memory(memory_bytes)]


def missing(walls: list[Wall]) -> list[str]:
    """The names of essential walls that do not stand."""
    standing = {wall.wall for wall in walls if wall.stands}
    return [name for name in ESSENTIAL if name not in standing]


def _try(name: str, attempts: dict[str, Trial]) -> Wall:
    stands, words = True, []
    for what, attempt in attempts.items():
        try:
            attempt()
            refused, word = False, "got through"
        except OSError as error:
            refused, word = error.errno in REFUSALS, (error.strerror or str(error)).lower()
        stands &= refused
        words.append(f"{what}: {word}")
    return Wall(name, stands, "; ".join(words))


def _try_memory(memory_bytes: int | None) -> Wall:
    if memory_bytes is None:
        return Wall("memory", False, "no limit was asked for")
    try:
        mmap.mmap(-1, memory_bytes + (1 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        return Wall("memory", error.errno == errno.ENOMEM, (error.strerror or "").lower())
    return Wall("memory", False, "got through")


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.unlink(path)


def _link(canary: str) -> None:
    place = f"{os.environ['HOME']}/link"
    os.symlink(f"{canary}/private", place)
    os.unlink(place)


def _tcp() -> None:
    with socket.socket() as tcp:
        tcp.connect(("127.0.0.1", 9))


def _udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"", ("127.0.0.1", 9))


def _local_socket() -> None:
    with socket.socket(socket.AF_UNIX) as local:
        local.connect("\0tbt-nobody-listens")


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _read_memory(pid: int) -> None:
    """The same question to the kernel as tracing it, but nothing is attached: at this address is never anything."""
    buffer = ctypes.create_string_buffer(8)
    here, there = struct.pack("QQ", ctypes.addressof(buffer), 8), struct.pack("QQ", 4096, 8)
    _check(_libc().process_vm_readv(pid, here, ctypes.c_ulong(1), there, ctypes.c_ulong(1), ctypes.c_ulong(0)))


def _become_root() -> None:
    os.setresuid(0, 0, 0)


def _new_namespace() -> None:
    _check(_libc().unshare(0))  # asks for none: the call itself must be refused, and a trial must change nothing


def _status() -> None:
    """The kernel's own word: no right is left in any set, and none can come back."""
    with open("/proc/self/status") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    sets = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    if fields["NoNewPrivs"] == "1" and all(int(fields[name], 16) == 0 for name in sets):
        raise PermissionError(errno.EPERM, "none left")


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _exec() -> None:
    # A name that is not there: where programs may be run at all the answer is another one, and we are still here.
    os.execve(f"{os.environ['HOME']}/no-program", ["no-program"], {})
