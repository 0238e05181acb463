"""A checkpoint counts only if every byte is the one that was written; the folders here are made by hand."""

import hashlib
import json
import re
import shutil

import pytest

from utils.runs.checkpoints import (
    best_checkpoint,
    find_checkpoint,
    folder_name,
    newest_checkpoint,
    verify,
)
from utils.runs.model_folder import is_model_folder
from utils.runtime.files import sha256_json

FILES = {
    "config.json": b'{"kind": "gpt", "n_layer": 2}',
    "model.safetensors": bytes(range(200)) + b"\x00" * 20,
    "trainer.json": b'{"format": 1, "step": 5}',
    "empty.txt": b"",
}


def build(root, step, files=FILES):
    """A checkpoint as its writer leaves it."""
    folder = root / folder_name(step)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    entries = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())
    }
    manifest = {"format": 1, "step": step, "files": entries}
    text = json.dumps({"manifest": manifest, "sha256": sha256_json(manifest)}, indent=2)
    (folder / "MANIFEST.json").write_text(text)
    return folder


def mark_best(root, step):
    digest = hashlib.sha256((root / folder_name(step) / "MANIFEST.json").read_bytes()).hexdigest()
    (root / "best.json").write_text(json.dumps({"step": step, "val_loss": 1.5, "manifest_sha256": digest}))


def damage(folder, name="model.safetensors"):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def test_names_sort_as_steps_do():
    assert folder_name(500) == "step-0000000500"
    assert sorted(map(folder_name, [10, 9, 100])) == [folder_name(step) for step in (9, 10, 100)]


def test_the_digest_is_that_of_the_sorted_json():
    assert sha256_json({"b": 1, "a": 2}) == hashlib.sha256(b'{"a": 2, "b": 1}').hexdigest()


# -- one checkpoint --------------------------------------------------------------------------------


def test_a_whole_checkpoint_gives_its_manifest(tmp_path):
    manifest = verify(build(tmp_path, 5))
    assert manifest["step"] == 5
    assert set(manifest["files"]) == set(FILES)


@pytest.mark.parametrize("name", ["MANIFEST.json", *(name for name, data in FILES.items() if data)])
def test_every_flipped_bit_of_every_byte_is_found(tmp_path, name):
    folder = build(tmp_path, 5)
    path = folder / name
    data = path.read_bytes()
    believed = []
    with path.open("r+b", buffering=0) as file:
        for offset in range(len(data)):
            for change in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                file.seek(offset)
                file.write(bytes([data[offset] ^ change]))
                if verify(folder) is not None:
                    believed.append((offset, change))
            file.seek(offset)
            file.write(data[offset : offset + 1])
    assert believed == []
    assert verify(folder) is not None


@pytest.mark.parametrize("name", ["MANIFEST.json", *(name for name, data in FILES.items() if data)])
def test_every_truncation_is_found(tmp_path, name):
    folder = build(tmp_path, 5)
    data = (folder / name).read_bytes()
    believed = []
    for size in range(len(data)):
        (folder / name).write_bytes(data[:size])
        if verify(folder) is not None:
            believed.append(size)
    assert believed == []
    (folder / name).write_bytes(data)
    assert verify(folder) is not None


@pytest.mark.parametrize("name", ["MANIFEST.json", *FILES])
def test_a_missing_file_is_found(tmp_path, name):
    folder = build(tmp_path, 5)
    (folder / name).unlink()
    assert verify(folder) is None


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "model.safetensors.tmp-1", "manifest.json"])
def test_a_file_too_many_is_found(tmp_path, name):
    folder = build(tmp_path, 5)
    (folder / name).write_bytes(b"")
    assert verify(folder) is None


def test_a_folder_too_many_is_found(tmp_path):
    folder = build(tmp_path, 5)
    (folder / "more").mkdir()
    assert verify(folder) is None


def test_a_byte_appended_is_found(tmp_path):
    folder = build(tmp_path, 5)
    with (folder / "empty.txt").open("ab") as file:
        file.write(b"\0")
    assert verify(folder) is None


def test_two_files_exchanged_are_found(tmp_path):
    folder = build(tmp_path, 5, {"a": b"12", "b": b"34"})
    (folder / "a").write_bytes(b"34")
    (folder / "b").write_bytes(b"12")
    assert verify(folder) is None


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"manifest": 3, "sha256": ""}', "\x00\x00", "[" * 9])
def test_a_manifest_that_is_none_is_found(tmp_path, text):
    folder = build(tmp_path, 5)
    (folder / "MANIFEST.json").write_text(text)
    assert verify(folder) is None


@pytest.mark.parametrize("files", [[], "model.safetensors", {"config.json": 3}, {"config.json": {"size": 1}}, None])
def test_a_manifest_of_another_form_is_refused(tmp_path, files):
    folder = tmp_path / folder_name(5)
    folder.mkdir()
    (folder / "config.json").write_bytes(b"x")
    manifest = {"format": 1, "step": 5, "files": files}
    text = json.dumps({"manifest": manifest, "sha256": sha256_json(manifest)})
    (folder / "MANIFEST.json").write_text(text)
    assert verify(folder) is None


def test_a_checkpoint_under_another_steps_name_is_refused(tmp_path):
    build(tmp_path, 5)
    shutil.copytree(tmp_path / folder_name(5), tmp_path / folder_name(9))
    assert newest_checkpoint(tmp_path) == (tmp_path / folder_name(5), [tmp_path / folder_name(9)])


def test_nothing_is_no_checkpoint(tmp_path):
    assert verify(tmp_path / "none") is None
    (tmp_path / "file").write_text("x")
    assert verify(tmp_path / "file") is None


# -- the newest, the best --------------------------------------------------------------------------


def test_the_newest_is_the_one_with_the_highest_step(tmp_path):
    for step in (100, 5, 20):
        build(tmp_path, step)
    assert newest_checkpoint(tmp_path) == (tmp_path / folder_name(100), [])


def test_the_newest_falls_back_over_damaged_ones_and_says_which(tmp_path):
    folders = {step: build(tmp_path, step) for step in (5, 10, 20, 30)}
    damage(folders[30])
    (folders[20] / "trainer.json").unlink()
    assert newest_checkpoint(tmp_path) == (folders[10], [folders[30], folders[20]])
    damage(folders[10], "MANIFEST.json")
    damage(folders[5], "config.json")
    assert newest_checkpoint(tmp_path) == (None, [folders[step] for step in (30, 20, 10, 5)])


def test_what_is_half_written_or_half_removed_is_no_checkpoint(tmp_path):
    folder = build(tmp_path, 5)
    for name in ("step-0000000009.tmp-77", "step-0000000008.del", "step-9", "step-00000000099", "best"):
        shutil.copytree(folder, tmp_path / name)
    assert newest_checkpoint(tmp_path) == (folder, [])


def test_without_a_checkpoint_there_is_no_newest(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "none") == (None, [])


def test_the_best_is_the_one_pointed_at(tmp_path):
    build(tmp_path, 5)
    build(tmp_path, 10)
    assert best_checkpoint(tmp_path) is None
    mark_best(tmp_path, 5)
    assert best_checkpoint(tmp_path) == tmp_path / folder_name(5)


@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors"])
def test_a_best_that_is_damaged_is_none(tmp_path, name):
    folder = build(tmp_path, 5)
    mark_best(tmp_path, 5)
    damage(folder, name)
    assert best_checkpoint(tmp_path) is None


def test_a_best_that_was_written_again_is_another(tmp_path):
    build(tmp_path, 5)
    mark_best(tmp_path, 5)
    shutil.rmtree(tmp_path / folder_name(5))
    build(tmp_path, 5, {"config.json": b"other"})
    assert verify(tmp_path / folder_name(5)) is not None
    assert best_checkpoint(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"step": 5}', '{"step": "5", "manifest_sha256": ""}'])
def test_a_pointer_that_says_nothing_points_nowhere(tmp_path, text):
    build(tmp_path, 5)
    (tmp_path / "best.json").write_text(text)
    assert best_checkpoint(tmp_path) is None


# -- by name ---------------------------------------------------------------------------------------


def test_a_checkpoint_is_found_by_name_and_by_step(tmp_path):
    for step in (5, 10):
        build(tmp_path, step)
    mark_best(tmp_path, 5)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / folder_name(10)
    assert find_checkpoint(tmp_path, "best") == tmp_path / folder_name(5)
    assert find_checkpoint(tmp_path, "5") == tmp_path / folder_name(5)
    assert find_checkpoint(tmp_path, "0010") == tmp_path / folder_name(10)


def test_where_nothing_was_evaluated_the_best_is_the_latest(tmp_path):
    build(tmp_path, 5)
    assert find_checkpoint(tmp_path, "best") == tmp_path / folder_name(5)


@pytest.mark.parametrize("which", ["7", "newest", "", "-5", "5.0", "99999999999", "²"])
def test_what_is_not_there_comes_with_what_is(tmp_path, which):
    for step in (5, 10):
        build(tmp_path, step)
    text = f"no whole checkpoint {which!r} in {tmp_path}; there are: best, latest, 5, 10"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(text)}$"):
        find_checkpoint(tmp_path, which)


def test_a_damaged_checkpoint_is_not_offered(tmp_path):
    build(tmp_path, 5)
    damage(build(tmp_path, 10))
    with pytest.raises(FileNotFoundError, match=r"^no whole checkpoint '10' in .*; there are: best, latest, 5$"):
        find_checkpoint(tmp_path, "10")


@pytest.mark.parametrize("which", ["best", "latest", "10"])
def test_where_none_is_whole_none_is_offered(tmp_path, which):
    damage(build(tmp_path, 10))
    with pytest.raises(FileNotFoundError, match=f"^no whole checkpoint '{which}' in .*; there are: none$"):
        find_checkpoint(tmp_path, which)


@pytest.mark.parametrize("which", ["best", "latest", "5"])
def test_an_empty_folder_has_none(tmp_path, which):
    with pytest.raises(FileNotFoundError, match=f"no whole checkpoint '{which}' in .*; there are: none$"):
        find_checkpoint(tmp_path, which)


@pytest.mark.parametrize("content", ["[" * 200_000, '{"manifest": {"step": "x"}, "sha256": 1}', "3"])
def test_a_list_of_files_that_cannot_be_read_is_none(tmp_path, content):
    folder = tmp_path / "step-0000000001"
    folder.mkdir()
    (folder / "MANIFEST.json").write_text(content)
    (tmp_path / "best.json").write_text(content)
    assert verify(folder) is None
    assert best_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path) == (None, [folder])


def test_a_config_without_end_is_no_model(tmp_path):
    with (tmp_path / "config.json").open("w") as file:
        file.truncate(1 << 34)  # sparse
    assert not is_model_folder(tmp_path)
