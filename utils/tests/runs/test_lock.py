"""One writer for each run folder, found out by the kernel: real processes hold, ask and are killed."""

import os
import time

import pytest

from utils.runs.lock import RunLock, is_locked
from utils.tests.runs.lock_holder import ASK, HOLD, end, held, start


def test_a_folder_nobody_ever_locked_is_free(tmp_path):
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "none")
    assert os.listdir(tmp_path) == []  # asking writes nothing


def test_the_lock_is_held_until_it_is_released(tmp_path):
    lock = RunLock(tmp_path)
    assert lock.acquire()
    assert is_locked(tmp_path)
    lock.release()
    assert not is_locked(tmp_path)
    assert (tmp_path / "run.lock").exists()
    lock.release()  # twice is once
    assert lock.acquire()
    lock.release()


def test_a_with_block_holds_it_and_gives_it_back_after_an_error(tmp_path):
    def fail():
        with RunLock(tmp_path):
            assert is_locked(tmp_path)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert not is_locked(tmp_path)


def test_another_process_sees_it_and_cannot_have_it(tmp_path):
    with held(tmp_path):
        assert is_locked(tmp_path)
        began = time.monotonic()
        assert not RunLock(tmp_path).acquire(patience=0.2)
        assert 0.2 <= time.monotonic() - began < 5
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_the_error_names_the_folder(tmp_path):
    with held(tmp_path), pytest.raises(BlockingIOError, match=f"^{tmp_path} is being written by another process$"):
        RunLock(tmp_path).__enter__()


def test_a_lock_refused_leaves_no_descriptor_open(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system has no /proc to count descriptors in")
    with held(tmp_path):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert not RunLock(tmp_path).acquire(patience=0)
            assert is_locked(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_kill_frees_it(tmp_path):
    with held(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert not is_locked(tmp_path)
        lock = RunLock(tmp_path)
        assert lock.acquire(patience=0)
        lock.release()


def test_who_is_patient_gets_it_when_it_is_free(tmp_path):
    with held(tmp_path):
        waiting = start(HOLD, tmp_path, 10)
        try:
            waiting.stdin.write("go\n")
            waiting.stdin.flush()
            time.sleep(0.1)
            assert is_locked(tmp_path)
        except BaseException:
            end(waiting)
            raise
    try:
        assert waiting.stdout.readline() == "True\n"
        assert is_locked(tmp_path)
    finally:
        end(waiting)


def test_of_eight_processes_exactly_one_wins(tmp_path):
    processes = []
    try:
        processes += [start(HOLD, tmp_path, 0) for _ in range(8)]
        for process in processes:
            process.stdin.write("go\n")
        for process in processes:
            process.stdin.flush()
        assert sorted(process.stdout.readline() for process in processes) == ["False\n"] * 7 + ["True\n"]
    finally:
        for process in processes:
            end(process)


def test_many_questions_do_not_keep_the_writer_out(tmp_path):
    (tmp_path / "run.lock").touch()
    asking = start(ASK, tmp_path, 0.6)
    try:
        for _ in range(10):
            lock = RunLock(tmp_path)
            assert lock.acquire()
            assert is_locked(tmp_path)
            lock.release()
        asked = int(asking.stdout.readline().split()[0])
        assert asked > 100  # it did hammer
    finally:
        end(asking)


def test_two_who_ask_do_not_take_each_other_for_the_writer(tmp_path):
    (tmp_path / "run.lock").touch()
    asking = []
    try:
        asking += [start(ASK, tmp_path, 0.4) for _ in range(2)]
        for process in asking:
            asked, locked = map(int, process.stdout.readline().split())
            assert asked > 100
            assert locked == 0
    finally:
        for process in asking:
            end(process)


def test_who_asks_always_sees_a_writer_that_is_there(tmp_path):
    with held(tmp_path):
        asking = start(ASK, tmp_path, 0.2)
        try:
            asked, locked = map(int, asking.stdout.readline().split())
        finally:
            end(asking)
    assert asked == locked > 100
