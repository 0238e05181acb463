"""The box: every attack is refused inside, gets through outside, and honest work goes on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from utils.jobs.box import Ending, Limits, NotIsolated, start_boxed
from utils.jobs.boxed import FAILED, NO_MEMORY
from utils.jobs.launch import ROOT
from utils.jobs.trials import ESSENTIAL, Wall, missing
from utils.runtime.files import read_regular
from utils.tests.jobs.attacks import ATTACKS, Scene, enter_all
from utils.tests.walls import needs_walls

pytestmark = needs_walls

enter_all()
ALL = ("user", "limits", "capabilities", "landlock", "seccomp")
RUN = "utils.tests.jobs.attacks:run"
WORK = "utils.tests.jobs.boxed_work"
SMALL = Limits(seconds=100, file_bytes=32 << 20, open_files=256)
# Refused or absent on many a machine even without walls: they show that the box refuses, not that it must.
MACHINE = {
    "read_a_disk", "read_the_kernel_log", "connect_over_tcp_6", "talk_to_the_hypervisor", "send_to_a_name_server",
    "call_by_the_other_convention", "call_what_is_not_known_yet", "type_into_the_terminal", "open_the_terminal",
    "handle_page_faults", "count_events", "load_a_bpf_program", "load_a_module", "unload_the_kernel", "set_up_io_uring",
    "compare_processes", "open_a_message_queue", "read_the_log_by_call", "open_a_packet_socket", "watch_all_files",
    "set_an_attribute_outside", "open_a_tree", "name_a_file_by_handle", "add_a_key", "ask_for_keys", "be_traced",
}  # fmt: skip


@dataclass
class Place:
    """A scene and what it takes to run something in it."""

    scene: Scene

    def run(self, *names: str, without: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
        """Try these attacks (default: all) in a box; how each went, and why."""
        arguments = {"scene": asdict(self.scene), "names": list(names)}
        with start_boxed(
            RUN, arguments, write=[Path(self.scene.inside)], limits=SMALL, trusted=bool(without), without=without
        ) as box:
            assert box.wait() == Ending(0, "")
        lines = read_regular(Path(self.scene.log), 1 << 20).decode().splitlines()
        return {name: (how, why) for name, how, why in map(json.loads, lines)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp(f"scene-{os.getpid()}-")
    outside, inside = base / "outside", base / "inside"
    for folder in (outside / ".ssh", outside / ".cache/huggingface", outside / ".local/share/jupyter/runtime", inside):
        folder.mkdir(parents=True)
    for name in ("secret", "open", "victim", "doomed", ".ssh/id_ed25519", ".cache/huggingface/token",
                 ".local/share/jupyter/runtime/kernel-1.json"):  # fmt: skip
        (outside / name).write_text("canary")
        (outside / name).chmod(0o644 if name == "open" else 0o600)
    (inside / "link").symlink_to(outside / "secret")
    (inside / "folder-link").symlink_to(outside)
    shared = Path("/dev/shm") / f"{base.name}-shared"
    shared.write_text("canary")
    abstract = f"tbt-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.callback(shared.unlink)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        for kind, name in ((socket.SOCK_STREAM, f"{outside}/server"), (socket.SOCK_STREAM, "\0" + abstract),
                           (socket.SOCK_DGRAM, f"{outside}/datagrams")):  # fmt: skip
            local = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            local.bind(name)
            if kind == socket.SOCK_STREAM:
                local.listen(16)
        threading.Thread(target=answer, args=(tcp,), daemon=True).start()
        victim = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={"HF_TOKEN": "canary"})
        )
        stack.callback(victim.kill)
        held = os.open(outside / "secret", os.O_RDONLY)
        os.set_inheritable(held, True)
        stack.callback(os.close, held)
        ports = tcp.getsockname()[1], udp.getsockname()[1]
        yield Place(Scene(str(outside), str(inside), victim.pid, *ports, abstract, held, str(inside / "log")))


def answer(server: socket.socket) -> None:
    """Say hello to whoever connects, until the server is closed."""
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx")
            client.close()


def test_every_attack_is_refused(place: Place):
    seen = place.run()
    assert seen.keys() == ATTACKS.keys()
    assert len(seen) > 100
    assert {name: why for name, (how, why) in seen.items() if how != "refused"} == {}
    assert Path(place.scene.outside, "victim").read_text() == "canary"


def test_without_walls_the_attacks_get_through(place: Place):
    names = set(ATTACKS) - MACHINE
    seen = place.run(*names, without=ALL)
    if os.geteuid() != 0:  # then the machine has walls of its own around other users' things
        names = {"read_a_secret", "write_a_new_file_outside", "connect_over_tcp", "kill_a_process", "fork"}
    assert {name: why for name, (how, why) in seen.items() if how != "through" and name in names} == {}


@pytest.mark.parametrize(
    ("without", "names"),
    [
        ("landlock", "read_a_secret write_a_new_file_outside write_into_shared_memory write_into_home"),
        ("seccomp", "fork become_a_program change_a_mode_outside send_over_udp connect_to_a_local_server"),
        ("seccomp", "limit_another_process make_a_program_of_root keep_memory_in_files_of_memory"),
        ("seccomp landlock", "connect_over_tcp kill_a_process make_a_link_pointing_out make_a_pipe"),
        ("landlock capabilities", "read_the_parents_environment read_anothers_memory_file"),
        ("seccomp capabilities", "take_rights make_a_network_namespace"),
        ("limits", "write_an_endless_file open_too_many_files take_much_memory"),
    ],
)
def test_a_wall_left_out_lets_its_attacks_through(place: Place, without: str, names: str):
    seen = place.run(*names.split(), without=tuple(without.split()))
    if os.geteuid() != 0:  # nobody else's things are touched, so most of it is refused by the machine itself
        seen = {name: seen[name] for name in ("read_a_secret", "fork", "connect_over_tcp") if name in seen}
    assert {name: how for name, how in seen.items() if how[0] != "through"} == {}


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        ("landlock", "private files, writing outside"),
        ("seccomp", "network"),
        ("landlock capabilities", "private files, writing outside, other processes, new privileges"),
        (" ".join(ALL), ", ".join(ESSENTIAL)),
    ],
)
def test_code_is_not_even_imported_where_an_essential_wall_is_missing(tmp_path: Path, without: str, gone: str):
    names = set(gone.split(", "))
    if os.geteuid() != 0 and "seccomp" not in without:
        names -= {"new privileges"}  # an ordinary user has none to lose
    target, arguments, left_out = f"{WORK}:mark", {"folder": str(tmp_path)}, without.split()
    with pytest.raises(NotIsolated, match="not isolated.*must trust it.*consent to the sha256") as caught:
        start_boxed(target, arguments, write=[tmp_path], without=left_out)
    assert names <= set(missing(list(caught.value.walls)))
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "mark").exists()
    with start_boxed(target, arguments, write=[tmp_path], without=left_out, trusted=True) as box:
        assert not box.isolated
        assert box.wait() == Ending(0, "")
    assert (tmp_path / "mark").exists()


def test_a_platform_without_walls_is_not_isolated():
    code = (
        "import sys; sys.platform = 'darwin'\n"
        "from utils.jobs.trials import missing, try_walls; from utils.jobs.walls import Plan, put_up\n"
        "put_up(Plan((), (), '', 0, None, 1, 1, 1, None)); print(*missing(try_walls(1, '', None)), sep=',')"
    )
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert got.stdout.strip().split(",") == list(ESSENTIAL), got.stderr


def test_a_trial_that_failed_for_another_reason_did_not_find_a_wall():
    assert missing([Wall(name, True, "") for name in ESSENTIAL]) == []
    assert missing([]) == list(ESSENTIAL)


def test_all_walls_are_reported(tmp_path: Path):
    with start_boxed(f"{WORK}:leave", {"code": 3}, write=[tmp_path]) as box:
        assert box.isolated
        assert {wall.wall for wall in box.walls if wall.stands} == {*ESSENTIAL, "open files", "new programs", "memory"}
        assert box.wait() == Ending(3, "ended with code 3")
        assert not box.home.exists()


def test_honest_training_goes_on_inside(tmp_path: Path):
    with start_boxed(f"{WORK}:train", {"folder": str(tmp_path)}, write=[tmp_path], limits=SMALL, threads=2) as box:
        assert box.wait() == Ending(0, "")
    seen = json.loads(read_regular(tmp_path / "result.json", 1000))
    assert (seen["threads"], seen["changed"]) == (2, True)
    assert seen["tasks"] > 1
    assert len(read_regular(tmp_path / "w.safetensors", 1 << 20)) > 256 * 256 * 4


def test_nothing_of_the_parent_is_left_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place):
    monkeypatch.setenv("HF_TOKEN", "canary")
    arguments = {"folder": str(tmp_path), "descriptor": place.scene.descriptor}
    with start_boxed(f"{WORK}:look", arguments, write=[tmp_path], threads=1) as box:
        assert box.wait() == Ending(0, "")
    text = read_regular(tmp_path / "look.json", 1 << 16).decode()
    seen = json.loads(text)
    assert "canary" not in text
    assert seen["environment"]["HOME"] == seen["environment"]["TMPDIR"] == seen["folder"] == str(box.home)
    # The one descriptor is the box's hold on its own folder.
    assert (seen["input"], seen["torch"], seen["descriptors"], seen["held"]) == ("", False, [3], False)
    assert str(tmp_path) not in " ".join(seen["arguments"])


def test_a_terminal_can_be_written_to_and_not_read_from(tmp_path: Path):
    keyboard, screen = os.openpty()
    arguments = {"folder": str(tmp_path), "descriptor": 0}
    with start_boxed(f"{WORK}:look", arguments, write=[tmp_path], stdout=screen, stderr=screen) as box:
        assert box.wait() == Ending(0, "")
    assert json.loads(read_regular(tmp_path / "look.json", 1 << 16))["ways"] == [os.O_WRONLY, os.O_WRONLY]
    os.close(keyboard)
    os.close(screen)


def test_descriptors_of_whoever_started_it_are_closed(tmp_path: Path):
    (tmp_path / "secret").write_text("canary")
    with open(tmp_path / "secret") as held:
        code = f"from utils.jobs.boxed import _close_all_but; import os; _close_all_but(1); os.read({held.fileno()}, 1)"
        words = [sys.executable, "-c", code]
        got = subprocess.run(words, cwd=ROOT, pass_fds=[held.fileno()], capture_output=True, text=True)
    assert "Bad file descriptor" in got.stderr


@pytest.mark.parametrize(
    ("name", "limits", "code", "words"),
    [
        ("hang", Limits(seconds=0.5), -signal.SIGKILL, "did not end within 0.5 s"),
        ("crash", Limits(), -signal.SIGSEGV, "killed by SIGSEGV"),
        ("eat", Limits(memory_bytes=2 << 30), NO_MEMORY, "needed more memory than the 2 GiB allowed"),
        ("eat_tensors", Limits(memory_bytes=4 << 30), NO_MEMORY, "needed more memory than the 4 GiB allowed"),
        ("spin", Limits(cpu_seconds=1), -signal.SIGXCPU, "killed by SIGXCPU (its processor time was used up)"),
        ("fail", Limits(), FAILED, "failed; its last output says why"),
        ("old_call", Limits(), -signal.SIGSYS, "killed by SIGSYS"),
    ],
)
def test_how_it_ended_is_said(tmp_path: Path, name: str, limits: Limits, code: int, words: str):
    if name == "old_call" and os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has this way to call")
    with open(tmp_path / "log", "wb") as log, start_boxed(f"{WORK}:{name}", {}, limits=limits, stderr=log) as box:
        ending = box.wait(60)
    assert (ending.code, ending.words[: len(words)]) == (code, words)
    if name == "fail":
        assert (tmp_path / "log").read_text().endswith("error: ValueError: as it should\n")


def test_patience_ends_it():
    with start_boxed(f"{WORK}:hang", {}) as box:
        assert box.wait(0.2) == Ending(-signal.SIGKILL, "did not end within 0.2 s")


@pytest.mark.parametrize("own_session", [False, True])
def test_it_dies_with_its_parent_unless_it_is_to_outlive_it(tmp_path: Path, own_session: bool):
    code = (
        "import time; from utils.jobs.box import start_boxed\n"
        f"start_boxed({WORK + ':hang'!r}, {{'folder': {str(tmp_path)!r}}}, write=[{str(tmp_path)!r}], "
        f"own_session={own_session}); time.sleep(600)"
    )
    (temporary := tmp_path.with_name(f"{tmp_path.name}-temporary")).mkdir()  # nobody will be left to tidy up
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)})
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    boxed = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    if own_session:
        time.sleep(0.3)
        os.kill(boxed, signal.SIGKILL)  # raises where it is gone
    until(lambda: not running(boxed))


def until(what, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def running(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_it_may_read_it_can_read_and_not_change(place: Place, tmp_path: Path):
    scene = replace(place.scene, inside=str(tmp_path), log=str(tmp_path / "log"))
    arguments = {"scene": asdict(scene), "names": ["read_a_secret", "write_a_new_file_outside", "append_outside"]}
    with start_boxed(RUN, arguments, read=[Path(scene.outside)], write=[tmp_path]) as box:
        assert box.wait() == Ending(0, "")
    lines = [json.loads(line)[:2] for line in read_regular(tmp_path / "log", 1 << 16).decode().splitlines()]
    assert [how for _, how in lines] == ["through", "refused", "refused"]


def test_root_becomes_nobody_where_nobody_can_reach_all_it_needs():
    """With a system's own interpreter, and even without Landlock, as on some rented machines."""
    system = Path("/usr/bin/python3")
    new = system.exists() and subprocess.run([system, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"])
    if os.geteuid() != 0 or not new or new.returncode or not os.stat(ROOT).st_mode & 0o001:
        pytest.skip("needs root, a system interpreter from 3.11 on, and a checkout that everybody may enter")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        code = (
            "from utils.jobs.box import start_boxed\n"
            f"box = start_boxed('{WORK}:mark', {{'folder': '{folder}'}}, write=['{folder}'], without=['landlock'])\n"
            "print(box.built['user'], box.isolated, box.wait().code)"
        )
        got = subprocess.run([system, "-P", "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert (got.stdout, os.stat(f"{folder}/mark").st_uid) == ("user 65534 True 0\n", 65534), got.stderr


def test_folders_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere does not exist; make it before"):
        start_boxed(f"{WORK}:hang", {}, read=[tmp_path / "nowhere"])


def test_a_folder_that_holds_all_temporary_files_is_too_much():
    with pytest.raises(ValueError, match="holds this machine's temporary files"):
        start_boxed(f"{WORK}:hang", {}, write=[Path(tempfile.gettempdir())])


def test_the_parents_side_imports_no_torch():
    code = "import sys, utils.jobs.box; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
