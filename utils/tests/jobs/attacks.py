"""What model code might try on files; every function either gets through or raises.

`run` is what a box is asked to call. It also runs without walls, where every attack must get through: an attack that
cannot succeed would prove nothing.
"""

import errno
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.jobs.trials import REFUSALS

LIMITED = (errno.ENOMEM, errno.EFBIG, errno.EMFILE, errno.EAGAIN)


@dataclass(frozen=True)
class Scene:
    """What the test has laid out; `outside` must stay out of reach, `inside` is the folder that may be written."""

    outside: str
    inside: str
    victim: int  # a process with a secret in its environment
    tcp: int
    udp: int
    abstract: str
    descriptor: int
    log: str = ""


ATTACKS: dict[str, Callable[[Scene], object]] = {}


def attack(function: Callable[[Scene], object]) -> Callable[[Scene], object]:
    """Enter a function in the list."""
    ATTACKS[function.__name__] = function
    return function


def enter_all() -> None:
    """Import the files that enter their own attacks into the list."""
    for kind in ("network", "processes", "kernel"):
        importlib.import_module(f"utils.tests.jobs.attacks_{kind}")


def run(scene: dict, names: list[str] | None = None) -> None:
    """Try all (or these), each in a process of its own where one can be made; write down how it went."""
    enter_all()
    place = Scene(**scene)
    Path(place.log).write_text("")
    for name in names or list(ATTACKS):
        try:
            child = os.fork()
        except OSError:
            _note(place, name)
            continue
        if child == 0:
            _note(place, name)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            _write(place, name, "broken", "died")


def _note(scene: Scene, name: str) -> None:
    try:
        ATTACKS[name](scene)
        _write(scene, name, "through", "")
    except MemoryError as error:
        _write(scene, name, "refused", repr(error))
    except BaseException as error:  # whatever it is, it is the result
        refused = isinstance(error, OSError) and error.errno in (*REFUSALS, *LIMITED)
        refused |= isinstance(error.__cause__ or getattr(error, "reason", None), PermissionError)
        _write(scene, name, "refused" if refused else "broken", repr(error))


def _write(scene: Scene, name: str, how: str, why: str) -> None:
    with open(scene.log, "a") as file:
        file.write(json.dumps([name, how, why]) + "\n")


def _read(path: str) -> None:
    with open(path, "rb") as file:
        assert file.read(1)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.unlink(path)


# Reading


@attack
def read_a_secret(scene: Scene):
    _read(f"{scene.outside}/secret")


@attack
def read_a_file_open_to_all(scene: Scene):
    _read(f"{scene.outside}/open")


@attack
def read_an_ssh_key(scene: Scene):
    _read(f"{scene.outside}/.ssh/id_ed25519")


@attack
def read_a_token(scene: Scene):
    _read(f"{scene.outside}/.cache/huggingface/token")


@attack
def read_a_kernel_connection_file(scene: Scene):
    _read(f"{scene.outside}/.local/share/jupyter/runtime/kernel-1.json")


@attack
def read_dot_env_beside_the_package(scene: Scene):
    os.listdir(Path(__file__).parents[3])


@attack
def list_a_folder_outside(scene: Scene):
    assert os.listdir(scene.outside)


@attack
def list_the_users_home(scene: Scene):
    import pwd

    os.listdir(pwd.getpwuid(os.getuid()).pw_dir)


@attack
def read_through_a_link_that_lies_inside(scene: Scene):
    _read(f"{scene.inside}/link")


@attack
def write_through_a_link_that_lies_inside(scene: Scene):
    _touch(f"{scene.inside}/folder-link/new")


@attack
def read_by_dot_dot(scene: Scene):
    _read(f"{scene.inside}/../{Path(scene.outside).name}/secret")


@attack
def read_by_the_root_of_proc(scene: Scene):
    _read(f"/proc/self/root{scene.outside}/secret")


@attack
def read_anothers_shared_memory(scene: Scene):
    _read(f"/dev/shm/{Path(scene.outside).parent.name}-shared")


@attack
def read_a_disk(scene: Scene):
    disk = next(name for name in ("vda", "sda", "nvme0n1", "loop0") if os.path.exists(f"/dev/{name}"))
    os.close(os.open(f"/dev/{disk}", os.O_RDONLY))


@attack
def read_the_kernel_log(scene: Scene):
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))


@attack
def watch_a_folder_outside(scene: Scene):
    from utils.tests.jobs.attacks_processes import call

    watcher = call("inotify_init1", 0, number=(294, 26))
    call("inotify_add_watch", watcher, scene.outside.encode(), 0x100)


# Writing


@attack
def write_a_new_file_outside(scene: Scene):
    _touch(f"{scene.outside}/new")


@attack
def make_a_folder_outside(scene: Scene):
    os.mkdir(f"{scene.outside}/folder")
    os.rmdir(f"{scene.outside}/folder")


@attack
def append_outside(scene: Scene):
    with open(f"{scene.outside}/victim", "a") as file:
        file.write("x")


@attack
def truncate_outside(scene: Scene):
    os.truncate(f"{scene.outside}/victim", 3)


@attack
def rename_outside(scene: Scene):
    os.rename(f"{scene.outside}/victim", f"{scene.outside}/other")
    os.rename(f"{scene.outside}/other", f"{scene.outside}/victim")


@attack
def move_a_secret_inside(scene: Scene):
    os.rename(f"{scene.outside}/victim", f"{scene.inside}/stolen")
    os.rename(f"{scene.inside}/stolen", f"{scene.outside}/victim")


@attack
def replace_a_file_outside(scene: Scene):
    Path(scene.inside, "mine").write_text("mine")
    os.rename(f"{scene.inside}/mine", f"{scene.outside}/open2")
    os.unlink(f"{scene.outside}/open2")


@attack
def delete_outside(scene: Scene):
    os.unlink(f"{scene.outside}/doomed")
    Path(scene.outside, "doomed").write_text("canary")


@attack
def change_a_mode_outside(scene: Scene):
    os.chmod(f"{scene.outside}/victim", 0o600)


@attack
def change_an_owner_outside(scene: Scene):
    os.chown(f"{scene.outside}/victim", os.getuid(), os.getgid())


@attack
def change_a_time_outside(scene: Scene):
    os.utime(f"{scene.outside}/victim", (1, 1))


@attack
def set_an_attribute_outside(scene: Scene):
    os.setxattr(f"{scene.outside}/victim", "user.mark", b"x")


@attack
def change_the_mode_of_a_library(scene: Scene):
    descriptor = os.open(json.__file__, os.O_RDONLY)
    os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o7777)


@attack
def write_into_tmp(scene: Scene):
    _touch(f"/tmp/tbt-attack-{os.getpid()}")


@attack
def write_into_home(scene: Scene):
    import pwd

    _touch(f"{pwd.getpwuid(os.getuid()).pw_dir}/.tbt-attack-{os.getpid()}")


@attack
def write_into_etc(scene: Scene):
    _touch(f"/etc/tbt-attack-{os.getpid()}")


@attack
def write_into_the_environment_of_python(scene: Scene):
    _touch(f"{sys.prefix}/lib/tbt-attack-{os.getpid()}")


@attack
def write_into_site_packages(scene: Scene):
    import site

    _touch(f"{site.getsitepackages()[0]}/tbt-attack-{os.getpid()}.pth")


@attack
def write_into_the_package(scene: Scene):
    _touch(f"{Path(__file__).parents[2]}/tbt-attack-{os.getpid()}.txt")


@attack
def write_into_shared_memory(scene: Scene):
    _touch(f"/dev/shm/tbt-attack-{os.getpid()}")


@attack
def make_a_link_pointing_out(scene: Scene):
    os.symlink(f"{scene.outside}/secret", f"{scene.inside}/model.safetensors")
    os.unlink(f"{scene.inside}/model.safetensors")


@attack
def make_a_hard_link_of_a_secret(scene: Scene):
    os.link(f"{scene.outside}/secret", f"{scene.inside}/hard")
    os.unlink(f"{scene.inside}/hard")


@attack
def make_a_pipe(scene: Scene):
    os.mkfifo(f"{scene.inside}/pipe")
    os.unlink(f"{scene.inside}/pipe")


@attack
def make_a_device(scene: Scene):
    os.mknod(f"{scene.inside}/device", 0o20600, os.makedev(1, 3))
    os.unlink(f"{scene.inside}/device")


@attack
def make_a_program_of_root(scene: Scene):
    path = f"{scene.inside}/set-id"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o4755))
    os.unlink(path)


@attack
def write_an_endless_file(scene: Scene):
    path = f"{scene.inside}/endless"
    try:
        with open(path, "wb") as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
                file.flush()
    finally:
        os.unlink(path)


@attack
def open_too_many_files(scene: Scene):
    opened = []
    try:
        for _ in range(4096):
            opened.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)
