"""A process is known by boot, pid and start time: a dead one is gone, and a stranger with its pid is a stranger."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from utils.runtime.process import identity, is_same

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")


@pytest.fixture
def child():
    """A process that sleeps until the test is over."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_this_process_is_itself():
    me = identity()
    assert me["pid"] == os.getpid()
    assert me == identity(os.getpid())
    assert is_same(me)


def test_an_identity_survives_json():
    assert is_same(json.loads(json.dumps(identity())))


def test_a_living_child_is_itself_and_not_another(child):
    assert is_same(identity(child.pid))
    assert identity(child.pid) != identity()


def test_a_killed_child_is_gone(child):
    was = identity(child.pid)
    child.kill()
    child.wait()
    assert not is_same(was)
    if Path("/proc/self/stat").exists():
        assert identity(child.pid)["start"] is None


@needs_proc
def test_a_killed_child_nobody_waited_for_does_not_live(child):
    # The kernel keeps the entry of a dead process until its parent asks how it ended.
    was = identity(child.pid)
    child.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not is_same(was)


def test_a_pid_used_again_is_another_process():
    me = identity()
    assert not is_same({**me, "start": str(me["start"]) + "0"})


@needs_proc
def test_a_process_of_another_boot_is_gone():
    assert not is_same({**identity(), "boot": "00000000-0000-0000-0000-000000000000"})


@pytest.mark.parametrize("process", [{}, {"pid": os.getpid()}, {"pid": os.getpid(), "start": None, "boot": ""}])
def test_an_identity_that_says_too_little_is_nobody(process):
    assert not is_same(process)


@needs_proc
def test_a_command_with_brackets_and_spaces_in_its_name(tmp_path):
    plain = subprocess.Popen(["sleep", "60"])
    command = tmp_path / "a) S 1 (b"
    shutil.copy(shutil.which("sleep"), command)
    odd = subprocess.Popen([str(command), "60"])
    try:
        deadline = time.monotonic() + 10
        while "(a) S 1 (b)" not in Path(f"/proc/{odd.pid}/stat").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "(a) S 1 (b)" in Path(f"/proc/{odd.pid}/stat").read_text()
        assert is_same(identity(odd.pid))
        assert int(identity(plain.pid)["start"]) <= int(identity(odd.pid)["start"])
        assert int(identity(odd.pid)["start"]) - int(identity(plain.pid)["start"]) < 60 * os.sysconf("SC_CLK_TCK")
    finally:
        for process in (plain, odd):
            process.kill()
            process.wait()
