"""Which system calls a boxed process may make, as a seccomp program. Knows no files, no users, no models.

What is listed is refused with "Operation not permitted"; the rest is allowed, and numbers newer than this file do not
exist inside. Numbers are those of the kernel's own tables.
"""

import platform
import struct

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, audit number
FIRST_UNKNOWN = 463
X32 = 0x40000000  # the other calling convention of x86_64, with numbers of its own

REFUSED = {  # name: number on (x86_64, aarch64)
    # New processes and programs; threads are made by clone, which is looked at below.
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "uselib": (134, None),
    # Other processes: their memory, descriptors, signals, time.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "tkill": (200, 130),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "get_robust_list": (274, 100), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # More rights.
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "setgroups": (116, 159), "capset": (126, 91), "unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "personality": (135, 92),
    # Doors into the kernel.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None), "lookup_dcookie": (212, 18),
    "syslog": (103, 116), "_sysctl": (156, None), "nfsservctl": (180, 42), "memfd_secret": (447, 447),
    # The file tree and the machine.
    "mount": (165, 40), "umount2": (166, 39), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "statmount": (457, 457), "listmount": (458, 458), "pivot_root": (155, 41),
    "chroot": (161, 51), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "vhangup": (153, 58), "fanotify_init": (300, 262), "inotify_add_watch": (254, 27),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # What Landlock does not look at: modes, owners, times, attributes and links of files.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None),
    "mknodat": (259, 33),
    # Ways out over sockets.
    "connect": (42, 203),
}  # fmt: skip
LOOKED_AT = {
    "clone": (56, 220), "clone3": (435, 435), "openat2": (437, 437), "memfd_create": (319, 279), "socket": (41, 198),
    "socketpair": (53, 199), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "ioctl": (16, 29), "fcntl": (72, 25),
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "prctl": (157, 167),
}  # fmt: skip

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
NUMBER, ARCHITECTURE = 0, 4  # where in struct seccomp_data
CLONE_THREAD, CLONE_NEW = 0x10000, 0x7E020000  # a thread of ours; any new namespace
SET_ID_BITS = 0o6000
UNIX, STREAM, SEQPACKET = 1, 1, 5
# Into a terminal's input, whom to signal about a descriptor, a file's flags.
IOCTLS = (0x5412, 0x541C, 0x5423, 0x8901, 0x8902, 0x40086602, 0x401C5820)
FCNTLS = (8, 10, 15, 1024, 1026)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY
# The parent-death signal, readable memory, whom to let trace: what the walls have set stays set.
PRCTLS = (1, 4, 35, 0x59616D61)

Block = list[bytes]


def _step(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _load(argument: int) -> bytes:
    return _step(0x20, 0, 0, 16 + 8 * argument)  # its low 32 bits: the kernel's own type of every argument used here


def _equal(value: int, yes: int, no: int) -> bytes:
    return _step(0x15, yes, no, value)


def _at_least(value: int, yes: int, no: int) -> bytes:
    return _step(0x35, yes, no, value)


def _any_bit(value: int, yes: int, no: int) -> bytes:
    return _step(0x45, yes, no, value)


def _end(what: int) -> bytes:
    return _step(0x06, 0, 0, what)


def _only(argument: int, *values: int) -> Block:
    """Allow where the argument is one of these."""
    tests = [_equal(value, len(values) - index, 0) for index, value in enumerate(values)]
    return [_load(argument), *tests, _end(EPERM), _end(ALLOW)]


def _never(argument: int, *values: int) -> Block:
    """Refuse where the argument is one of these."""
    tests = [_equal(value, len(values) - index, 0) for index, value in enumerate(values)]
    return [_load(argument), *tests, _end(ALLOW), _end(EPERM)]


def _blocks(pid: int, gpu: bool) -> dict[str, Block]:
    """What is decided by a call's arguments. `gpu`: the driver wants a socket of its own and shared memory."""
    refuse, allow = [_end(EPERM)], [_end(ALLOW)]
    # Streams only: a datagram socket could send to any path or name without connecting.
    local = [_load(0), _equal(UNIX, 1, 0), _end(EPERM), _load(1), _step(0x54, 0, 0, 0xF), _equal(STREAM, 2, 0)]
    local += [_equal(SEQPACKET, 1, 0), _end(EPERM), _end(ALLOW)]
    thread = [_load(0), _any_bit(CLONE_NEW, 2, 0), _any_bit(CLONE_THREAD, 0, 1), _end(ALLOW), _end(EPERM)]
    own, own_or_zero = _only(0, pid), _only(0, 0, pid)
    mode = {number: [_load(number), _any_bit(SET_ID_BITS, 1, 0), _end(ALLOW), _end(EPERM)] for number in (1, 2, 3)}
    return {
        "clone": thread,
        "clone3": [_end(ENOSYS)],  # its flags lie in memory, where no filter sees them; the C library then takes clone
        "openat2": [_end(ENOSYS)],
        "memfd_create": allow if gpu else refuse,  # memory that no limit counts
        "socket": local,
        "socketpair": local,
        **dict.fromkeys(("bind", "listen", "accept", "accept4"), allow if gpu else refuse),
        **dict.fromkeys(("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"), own),
        **dict.fromkeys(
            ("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"), own_or_zero
        ),
        "ioctl": _never(1, *IOCTLS),
        "fcntl": _never(1, *FCNTLS),
        "prctl": _never(0, *PRCTLS),
        # A file made with a set-id bit by root would hand root to whoever runs it.
        "open": mode[2],
        "openat": mode[3],
        "creat": mode[1],
    }


def program(pid: int, gpu: bool) -> bytes:
    """The filter for process `pid` on this machine.

    Raises:
        OSError: no table for this kind of processor.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {machine}")
    column, audit = ARCHITECTURES[machine]
    steps = [_step(0x20, 0, 0, ARCHITECTURE), _equal(audit, 1, 0), _end(KILL), _step(0x20, 0, 0, NUMBER)]
    steps += [_at_least(X32, 0, 1), _end(EPERM), _at_least(FIRST_UNKNOWN, 0, 1), _end(ENOSYS)]
    blocks = _blocks(pid, gpu)
    assert blocks.keys() == LOOKED_AT.keys()
    for table in (LOOKED_AT, REFUSED):
        for name, numbers in table.items():
            if (number := numbers[column]) is not None:
                block = blocks.get(name, [_end(EPERM)])
                steps += [_equal(number, 0, len(block)), *block]
    return b"".join([*steps, _end(ALLOW)])
