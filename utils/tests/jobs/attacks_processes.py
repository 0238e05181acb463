"""What model code might try on other processes and to start new ones; enters itself into ATTACKS."""

import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import socket
import struct
import subprocess

from utils.jobs.syscalls import ARCHITECTURES, LOOKED_AT, REFUSED
from utils.tests.jobs.attacks import Scene, attack


def call(name: str, *arguments: object, number: tuple[int, int] | None = None) -> int:
    """A system call by its name: the tables are those of the filter, which therefore are tried, too."""
    column = ARCHITECTURES[platform.machine()][0]
    chosen = (number or {**REFUSED, **LOOKED_AT}[name])[column]
    libc = ctypes.CDLL(None, use_errno=True)
    longs = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(chosen), *longs)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def prctl(*values: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.prctl(*[ctypes.c_ulong(value) for value in values], *[ctypes.c_ulong(0)] * (5 - len(values)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


# Other processes


@attack
def read_the_parents_environment(scene: Scene):
    with open(f"/proc/{scene.victim}/environ") as file:
        assert "canary" in file.read()


@attack
def read_any_environment(scene: Scene):
    """Every process there is: refused only if all of them are."""
    seen = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ") as file:
                    seen += bool(file.read())
            except OSError:
                continue
    assert seen


@attack
def read_anothers_memory_file(scene: Scene):
    os.close(os.open(f"/proc/{scene.victim}/mem", os.O_RDWR))


@attack
def read_anothers_command_line(scene: Scene):
    with open(f"/proc/{scene.victim}/cmdline") as file:
        assert file.read()


@attack
def open_anothers_descriptor(scene: Scene):
    os.listdir(f"/proc/{scene.victim}/fd")


@attack
def enter_by_anothers_root(scene: Scene):
    os.listdir(f"/proc/{scene.victim}/cwd")


@attack
def kill_the_parent(scene: Scene):
    os.kill(os.getppid(), 0)


@attack
def kill_a_process(scene: Scene):
    os.kill(scene.victim, signal.SIGCONT)


@attack
def kill_everything(scene: Scene):
    os.kill(-1, 0)


@attack
def kill_the_group(scene: Scene):
    os.killpg(0, 0)


@attack
def kill_a_thread(scene: Scene):
    call("tgkill", scene.victim, scene.victim, 0)


@attack
def kill_by_tkill(scene: Scene):
    call("tkill", scene.victim, 0)


@attack
def kill_by_queue(scene: Scene):
    info = struct.pack("iiiiii", signal.SIGCONT, 0, -1, 0, os.getpid(), os.getuid()).ljust(128, b"\0")
    call("rt_sigqueueinfo", scene.victim, int(signal.SIGCONT), info)


@attack
def kill_by_descriptor(scene: Scene):
    one, _ = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETOWN, scene.victim)


@attack
def open_a_process(scene: Scene):
    os.close(call("pidfd_open", scene.victim, 0))


@attack
def steal_a_descriptor(scene: Scene):
    opened = call("pidfd_open", scene.victim, 0)
    os.close(call("pidfd_getfd", opened, 0, 0))


@attack
def trace_a_process(scene: Scene):
    call("ptrace", 0x4206, scene.victim, 0, 0)  # it is let go when this process ends


@attack
def be_traced(scene: Scene):
    call("ptrace", 0, 0, 0, 0)


@attack
def read_anothers_memory(scene: Scene):
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(buffer), 8)
    # It exists and may be read: a wrong address is another answer than a refusal.
    try:
        call("process_vm_readv", scene.victim, local, 1, struct.pack("QQ", 4096, 8), 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


@attack
def limit_another_process(scene: Scene):
    call("prlimit64", scene.victim, int(resource.RLIMIT_CORE), struct.pack("QQ", 0, 0), None)


@attack
def bind_another_process(scene: Scene):
    os.sched_setaffinity(scene.victim, os.sched_getaffinity(0))


@attack
def slow_another_process(scene: Scene):
    os.setpriority(os.PRIO_PROCESS, scene.victim, 5)


@attack
def share_memory_by_number(scene: Scene):
    found = call("shmget", 0, 4096, 0o1600)
    call("shmctl", found, 0, 0)


@attack
def open_a_message_queue(scene: Scene):
    call("msgctl", call("msgget", 0, 0o1600), 0, 0)


@attack
def compare_processes(scene: Scene):
    call("kcmp", os.getpid(), scene.victim, 1, 0, 0)


# New processes and programs


@attack
def fork(scene: Scene):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@attack
def fork_many(scene: Scene):
    for _ in range(20):
        fork(scene)


@attack
def fork_by_clone(scene: Scene):
    if call("clone", int(signal.SIGCHLD), 0, 0, 0, 0) == 0:
        os._exit(0)


@attack
def fork_by_clone3(scene: Scene):
    if call("clone3", struct.pack("8Q", 0, 0, 0, 0, int(signal.SIGCHLD), 0, 0, 0), 64) == 0:
        os._exit(0)


@attack
def spawn(scene: Scene):
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


@attack
def run_a_program(scene: Scene):
    subprocess.run(["/bin/true"], check=True)


@attack
def run_a_shell(scene: Scene):
    if os.system("true") != 0:  # it has no other way to say so
        raise PermissionError(errno.EPERM, "no shell")


@attack
def become_a_program(scene: Scene):
    try:
        os.execve(f"{scene.inside}/none", ["none"], {})
    except FileNotFoundError:  # it was looked for: a real one would have run
        return


@attack
def run_a_program_from_memory(scene: Scene):
    program = os.memfd_create("program")
    with open("/bin/true", "rb") as file:
        os.write(program, file.read())
    if os.fork() == 0:
        os.execve(program, ["true"], {})
    os.wait()


@attack
def keep_memory_in_files_of_memory(scene: Scene):
    os.close(os.memfd_create("memory"))
