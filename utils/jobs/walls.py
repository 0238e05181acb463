"""Puts walls around this very process, for good: user, limits, rights, Landlock, seccomp. Linux; knows no models.

Whether they hold is another matter, which trials.py looks into. Sources: the kernel's own documents on landlock(7),
seccomp(2), capabilities(7), prctl(2).
"""

import contextlib
import ctypes
import os
import signal
import stat
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.jobs.syscalls import program

NOBODY = 65534
GPU = "/dev/nvidiactl"
OUR_CODE = Path(__file__).parents[1]  # the package itself; the folder it lies in may hold anything
SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/nsswitch.conf",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/sys/vm",
    "/sys/devices/system", "/sys/kernel/mm/transparent_hugepage", "/dev/urandom", "/dev/random",
)  # fmt: skip
DRIVER = ("/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/sys/bus/pci", "/sys/devices", "/sys/module/nvidia")

# prctl(2)
SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, NO_NEW_PRIVS = 1, 4, 22, 38
CAPBSET_DROP, SET_SECUREBITS, CAP_AMBIENT = 24, 28, 47
# landlock(7): system calls, and what may be allowed beneath a path
CREATE, ADD, RESTRICT = 444, 445, 446
RUN, WRITE, READ, LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE, MAKE = 1 << 4 | 1 << 5, 1 << 7 | 1 << 8  # folders and plain files; no device, socket, pipe or link
REFER, TRUNCATE, IOCTL = 1 << 13, 1 << 14, 1 << 15
ON_A_FILE = RUN | WRITE | READ | TRUNCATE | IOCTL


@dataclass(frozen=True)
class Plan:
    """What a boxed process may reach, and how much of it."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    home: str
    parent: int
    """Its death ends the process; 0: the process outlives it."""
    memory_bytes: int | None
    file_bytes: int
    open_files: int
    threads: int
    cpu_seconds: int | None


def has_gpu() -> bool:
    """Whether an NVIDIA driver is here: it needs devices, shared memory and a great many addresses."""
    return os.path.exists(GPU)


def readable(plan: Plan) -> list[str]:
    """Every path that stays readable: interpreter, libraries, our code and what the plan names."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    parts = ("bin", "lib", "lib64", "pyvenv.cfg")  # never the prefix: it may be somebody's home
    python = [os.path.join(prefix, part) for prefix in sorted(prefixes) for part in parts]
    driver = DRIVER if has_gpu() else ()
    return [path for path in (*SYSTEM, *driver, *python, str(OUR_CODE), *plan.read) if os.path.exists(path)]


def writable(plan: Plan) -> list[str]:
    """Every path that stays writable."""
    devices = ["/dev/null", "/dev/zero"]
    if has_gpu():
        devices += ["/dev/shm", *(f"/dev/{name}" for name in os.listdir("/dev") if name.startswith("nvidia"))]
    return [path for path in (*devices, plan.home, *plan.write) if os.path.exists(path)]


def put_up(plan: Plan, without: Sequence[str] = ()) -> dict[str, str]:
    """Put up every wall the kernel grants; what each came to, in words.

    Args:
        plan: what stays open.
        without: walls to leave out, so that a test can see what they are for: "user", "limits", "capabilities",
            "landlock", "seccomp".
    """
    if sys.platform != "linux":
        return {"walls": f"absent: there are none on {sys.platform}"}
    walls = {
        "user": lambda: _change_user(plan),
        "limits": lambda: _limit(plan),
        "capabilities": _drop_capabilities,
        "privileges": lambda: _belong_to(plan.parent),  # both Landlock and seccomp ask for it; the user is final by now
        "landlock": lambda: _landlock(readable(plan), writable(plan)),
        "seccomp": _seccomp,
    }
    done = {}
    for name, build in walls.items():
        if name in without:
            done[name] = "left out"
            continue
        try:
            done[name] = build()
        except OSError as error:
            done[name] = f"absent: {error.strerror or error}"
    return done


def call(number: int, *arguments: object) -> int:
    """A system call by number. Raises: OSError."""
    result = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise _last_error()
    return int(result)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _prctl(what: int, *values: object) -> None:
    padded = [*values, 0, 0, 0, 0][:4]
    longs = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in padded]
    if _libc().prctl(what, *longs) != 0:
        raise _last_error()


def _belong_to(parent: int) -> str:
    """No new rights by running a program, memory readable by nobody, and an end when the parent ends."""
    _prctl(NO_NEW_PRIVS, 1)
    _prctl(SET_DUMPABLE, 0)
    if parent:
        _prctl(SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)
        return "no new ones; ends with its parent"
    return "no new ones; outlives its parent"


def _change_user(plan: Plan) -> str:
    """From root to nobody, where nobody can still reach what the plan needs."""
    if os.geteuid() != 0:
        return f"stays user {os.geteuid()}"
    blocked = _unreachable_for(NOBODY, plan)
    user = 0 if blocked else NOBODY
    for folder in (*plan.write, plan.home):  # its own home last: where a disk knows no owners nothing has changed yet
        _give(folder, user)
    if blocked:
        return f"stays root without its rights: user {NOBODY} cannot reach {blocked}"
    # The rights go with the user; without this root's bounding set would survive in vain.
    _forget_capabilities()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return f"user {NOBODY}"


def _unreachable_for(user: int, plan: Plan) -> str:
    """The first needed path that another user could not open, asked by a process that has become that user."""
    needed = [sys.executable, *readable(plan), *(entry for entry in sys.path if os.path.isdir(entry))]
    folders = [plan.home, *plan.write]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found = "anything: the change itself is refused"
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            # The folders to write in will be given to the user: only the way to them must be open.
            found = next((path for path in needed if not _opens(path)), "")
            found = found or next((path for path in folders if not os.access(Path(path).parent, os.X_OK)), "")
        finally:
            os.write(writer, found.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return found


def _opens(path: str) -> bool:
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        return False
    # One level down as well: an installed package is as private as its installer's umask.
    return not os.path.isdir(path) or all(
        os.access(entry.path, os.R_OK) for entry in os.scandir(path) if not path.startswith(("/proc", "/sys", "/usr"))
    )


def _give(folder: str, user: int) -> None:
    """Make a tree another user's; links, and files with a second name elsewhere, are left alone."""
    os.chown(folder, user, user)
    for _, folders, files, descriptor in os.fwalk(folder):
        for name in (*folders, *files):
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            plain = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
            if plain and found.st_uid != user:
                os.chown(name, user, user, dir_fd=descriptor, follow_symlinks=False)


def _limit(plan: Plan) -> str:
    """Memory, file size, descriptors, threads, processor time and no core dumps."""
    import resource  # not on every platform

    # The count is kept per user, over all of that user's processes, and is not kept for root.
    limits = {"NOFILE": plan.open_files, "FSIZE": plan.file_bytes, "CORE": 0, "CPU": plan.cpu_seconds}
    limits["NPROC"] = plan.threads + _tasks_of(os.geteuid())
    limits["DATA" if has_gpu() else "AS"] = plan.memory_bytes  # a driver maps far more addresses than it uses
    for name, value in limits.items():
        if value is not None:
            number = getattr(resource, f"RLIMIT_{name}")
            highest = resource.getrlimit(number)[1]
            value = value if highest == resource.RLIM_INFINITY else min(value, highest)
            last = value + 5 if name == "CPU" and highest == resource.RLIM_INFINITY else value  # told, then killed
            resource.setrlimit(number, (value, last))
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)


def _tasks_of(user: int) -> int:
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user:
                    count += len(os.listdir(f"{entry.path}/task"))
            except OSError:  # it ended while we counted
                continue
    return count


def _forget_capabilities() -> None:
    """The bounding and ambient sets; they can only be emptied by one who still has the right to."""
    for number in range(64):
        try:
            _prctl(CAPBSET_DROP, number)
        except OSError:  # past the last one, or not ours to drop: then there is none to lose either
            break
    with contextlib.suppress(OSError):  # an old kernel has no such set
        _prctl(CAP_AMBIENT, 4)  # clear all
    with contextlib.suppress(OSError):  # only root may, and only root needs it
        _prctl(SET_SECUREBITS, 0b11100011)  # user 0 is nobody special, and stays so


def _drop_capabilities() -> str:
    _forget_capabilities()
    header = struct.pack("Ii", 0x20080522, 0)
    if _libc().capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))) != 0:
        raise _last_error()
    return "none left"


def _landlock(read: Iterable[str], write: Iterable[str]) -> str:
    """Files: only what is listed. From ABI 4 on no TCP, from 6 on no signals and no abstract sockets of others."""
    abi = call(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    handled = (1 << 13) - 1 | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL if abi >= 5 else 0)
    fields = [handled] + ([0b11] if abi >= 4 else []) + ([0b11] if abi >= 6 else [])
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = call(CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    look, change = READ | LIST, READ | LIST | WRITE | REMOVE | MAKE | REFER | TRUNCATE
    for paths, granted in ((read, look), (write, change)):
        for path in paths:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = granted & handled if os.path.isdir(path) else granted & handled & ON_A_FILE
            if path.startswith("/dev/nvidia"):
                allowed |= IOCTL & handled  # how a driver is spoken to
            rule = struct.pack("=Qi", allowed, descriptor)
            call(ADD, ctypes.c_int(rules), ctypes.c_uint(1), ctypes.c_char_p(rule), ctypes.c_uint(0))
            os.close(descriptor)
    call(RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)
    return f"ABI {abi}"


def _seccomp() -> str:
    steps = program(os.getpid(), has_gpu())
    count = len(steps) // 8
    buffer = ctypes.create_string_buffer(steps, len(steps))
    filters = struct.pack("HxxxxxxQ", count, ctypes.addressof(buffer))
    _prctl(SET_SECCOMP, 2, ctypes.c_char_p(filters))
    return f"{count} steps"
