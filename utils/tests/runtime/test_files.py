"""A file is the old one or the new one at any moment, and a failure leaves nothing behind."""

import hashlib
import os
import tempfile
import threading
from pathlib import Path

import pytest

from utils.runtime.files import (
    cache_dir,
    fsync_file,
    fsync_folder,
    hold,
    read_regular,
    remove_tree,
    scratch_folder,
    sha256_file,
    write_atomic,
)


@pytest.mark.parametrize("durable", [True, False])
def test_write_atomic_makes_and_replaces(tmp_path, durable):
    path = tmp_path / "state.json"
    write_atomic(path, "é\n", durable)
    assert path.read_bytes() == "é\n".encode()
    write_atomic(path, b"\x00\xff\r\n", durable)
    assert path.read_bytes() == b"\x00\xff\r\n"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_reader_sees_the_old_bytes_or_the_new_ones(tmp_path):
    path = tmp_path / "state.json"
    versions = {bytes([65 + i]) * (100_000 + i) for i in range(4)}
    write_atomic(path, next(iter(versions)))
    seen, bad, over = set(), [], threading.Event()

    def read():
        while not over.is_set():
            data = path.read_bytes()
            seen.add(data)
            if data not in versions:
                bad.append(len(data))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(60):
        for data in versions:
            write_atomic(path, data, durable=False)
    over.set()
    for reader in readers:
        reader.join()
    assert bad == []
    assert len(seen) > 1  # the readers did look while it changed


def test_two_threads_may_write_the_same_file(tmp_path):
    path, errors = tmp_path / "state.json", []
    versions = [letter * 50_000 for letter in (b"a", b"b")]

    def write(data):
        try:
            for _ in range(150):
                write_atomic(path, data, durable=False)
        except OSError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(data,)) for data in versions]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert path.read_bytes() in versions
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_missing_folder_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "state.json", "new")
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_an_error_and_leaves_no_temporary_file(tmp_path):
    (tmp_path / "state.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "state.json", "new")
    assert os.listdir(tmp_path) == ["state.json"]


def test_text_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "state.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_link_is_replaced_and_its_target_is_left_alone(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "old"
    assert (tmp_path / "link").read_text() == "new"


def test_fsync_takes_files_and_folders(tmp_path):
    (tmp_path / "file").write_text("x")
    fsync_file(tmp_path / "file")
    fsync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_file(tmp_path / "none")
    with pytest.raises(NotADirectoryError):
        fsync_folder(tmp_path / "file")


def test_fsync_leaves_no_descriptor_open(tmp_path):
    (tmp_path / "file").write_text("x")
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(20):
        fsync_file(tmp_path / "file")
        fsync_folder(tmp_path)
    after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    assert after == before


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5_000])
def test_sha256_is_that_of_the_bytes(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_sha256_of_abc_is_the_published_one(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/own", "/xdg", "/own"),
        ("/own", None, "/own"),
        ("", "/xdg", "/xdg/transformer-builder"),
        (None, "/xdg", "/xdg/transformer-builder"),
        (None, "", "/home/someone/.cache/transformer-builder"),
        (None, None, "/home/someone/.cache/transformer-builder"),
    ],
)
def test_the_cache_is_the_users_choice_then_the_systems(monkeypatch, own, xdg, expected):
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in (("TBT_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_a_plain_file_is_read_up_to_its_limit(tmp_path: Path):
    (tmp_path / "result").write_bytes(b"12345")
    assert read_regular(tmp_path / "result", 5) == b"12345"
    with pytest.raises(ValueError, match="result is longer than the 4 bytes"):
        read_regular(tmp_path / "result", 4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing", 5)


def test_a_file_that_leads_elsewhere_is_not_read(tmp_path: Path):
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(ValueError, match=f"{name} is not a plain file"):
            read_regular(tmp_path / name, 100)
    os.link(tmp_path / "secret", tmp_path / "second")
    with pytest.raises(ValueError, match="second has 2 names"):
        read_regular(tmp_path / "second", 100)


def test_a_folder_is_removed_however_deep_and_closed_it_is(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    with scratch_folder("test") as folder:
        below = os.open(folder, os.O_RDONLY)
        for _ in range(3000):  # deeper than the stack and than a path may be long
            os.mkdir("x", dir_fd=below)
            os.close(os.open("y", os.O_CREAT | os.O_WRONLY, dir_fd=below))
            above, below = below, os.open("x", os.O_RDONLY, dir_fd=below)
            os.close(above)
        os.close(below)
        (folder / "closed").mkdir(mode=0)
        (folder / "link").symlink_to(kept)
    assert not folder.exists()
    assert (kept / "file").exists()
    remove_tree(tmp_path / "not there")


def test_folders_of_killed_processes_are_swept_and_those_in_use_are_not(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, used, young = (tmp_path / f"tbt-scratch-{name}" for name in ("left", "used", "young"))
    for folder in (left, used, young):
        folder.mkdir()
        (folder / "file").touch()
    for folder in (left, used):
        os.utime(folder, (0, 0))
    held = hold(used)
    with scratch_folder("new") as mine:
        assert mine.name.startswith("tbt-scratch-new-")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            ["tbt-scratch-used", "tbt-scratch-young", mine.name]
        )
    assert not mine.exists()
    os.close(held)
