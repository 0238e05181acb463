"""What model code might try for more rights and on the kernel; enters itself into ATTACKS."""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import signal
import struct
import termios

from utils.tests.jobs.attacks import Scene, attack
from utils.tests.jobs.attacks_processes import call, prctl

# More rights


@attack
def become_root(scene: Scene):
    os.setresuid(0, 0, 0)


@attack
def join_groups(scene: Scene):
    os.setgroups([0])


@attack
def take_rights(scene: Scene):
    header = ctypes.c_char_p(struct.pack("Ii", 0x20080522, 0))
    call("capset", header, struct.pack("6I", 1 << 21, 1 << 21, 0, 0, 0, 0))


@attack
def make_a_user_namespace(scene: Scene):
    call("unshare", 0x10000000)


@attack
def make_a_network_namespace(scene: Scene):
    call("unshare", 0x40000000)


@attack
def make_a_mount_namespace(scene: Scene):
    call("unshare", 0x20000)


@attack
def make_a_namespace_by_clone(scene: Scene):
    if call("clone", 0x20000000 | int(signal.SIGCHLD), 0, 0, 0, 0) == 0:
        os._exit(0)


@attack
def enter_a_namespace(scene: Scene):
    call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0)


@attack
def mount(scene: Scene):
    call("mount", b"none", scene.inside.encode(), b"tmpfs", 0, 0)
    call("umount2", scene.inside.encode(), 2)


@attack
def open_a_tree(scene: Scene):
    os.close(call("open_tree", -100, b"/", 1))


@attack
def make_a_file_system(scene: Scene):
    os.close(call("fsopen", b"tmpfs", 0))


@attack
def change_the_root(scene: Scene):
    os.chroot("/")


@attack
def swap_the_root(scene: Scene):
    try:
        call("pivot_root", scene.inside.encode(), scene.inside.encode())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBUSY):  # it was looked at: these two are no mounts
            raise


@attack
def rename_the_machine(scene: Scene):
    name = platform.node().encode()
    call("sethostname", name, len(name))


@attack
def become_readable(scene: Scene):
    prctl(4, 1)


@attack
def outlive_the_parent(scene: Scene):
    prctl(1, 0)


@attack
def raise_a_limit(scene: Scene):
    call("prlimit64", 0, int(resource.RLIMIT_CORE), struct.pack("QQ", 4096, 4096), None)


@attack
def change_personality(scene: Scene):
    call("personality", 0x0040000)


# Doors into the kernel


@attack
def set_up_io_uring(scene: Scene):
    os.close(call("io_uring_setup", 1, ctypes.create_string_buffer(120)))


@attack
def load_a_bpf_program(scene: Scene):
    os.close(call("bpf", 0, struct.pack("4I", 2, 4, 4, 1).ljust(72, b"\0"), 72))


@attack
def count_events(scene: Scene):
    os.close(call("perf_event_open", struct.pack("IIQ", 1, 112, 0).ljust(112, b"\0"), 0, -1, -1, 0))


@attack
def add_a_key(scene: Scene):
    call("add_key", b"user", b"tbt", b"x", 1, -2)


@attack
def ask_for_keys(scene: Scene):
    call("keyctl", 0, -2, 1)


@attack
def handle_page_faults(scene: Scene):
    os.close(call("userfaultfd", 1))


@attack
def name_a_file_by_handle(scene: Scene):
    handle = struct.pack("Ii", 128, 0).ljust(136, b"\0")
    call("name_to_handle_at", -100, b"/", handle, ctypes.create_string_buffer(8), 0)


@attack
def load_a_module(scene: Scene):
    try:
        call("init_module", b"", 0, b"")
    except OSError as error:
        if error.errno != errno.ENOEXEC:  # it was looked at: a real one would be in
            raise


@attack
def unload_the_kernel(scene: Scene):
    call("kexec_load", 0, 0, 0, 0)


@attack
def read_the_log_by_call(scene: Scene):
    call("syslog", 3, ctypes.create_string_buffer(64), 64)


@attack
def watch_all_files(scene: Scene):
    os.close(call("fanotify_init", 0x200, 0))


@attack
def call_by_the_other_convention(scene: Scene):
    call("getpid", number=(0x40000000 + 39, 5000))


@attack
def call_what_is_not_known_yet(scene: Scene):
    call("file_getattr", -100, b"/", ctypes.create_string_buffer(64), 24, 0, number=(468, 468))


@attack
def type_into_the_terminal(scene: Scene):
    fcntl.ioctl(0, termios.TIOCSTI, b"x")


@attack
def open_the_terminal(scene: Scene):
    os.close(os.open("/dev/ptmx", os.O_RDWR))


# Too much of it


@attack
def take_much_memory(scene: Scene):
    mmap.mmap(-1, 50 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000).close()  # no reserve
