"""A user's mistake is one clear message and exit code 2, and leaves nothing half-written."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.tests.walls import needs_walls

FINDING = "finding the learning rate ...\n"  # may stand before an error: only the process that trains sees it
TRAIN = ("train", "--preset", "debug", "--run-dir", "runs/x")


def from_file(path: str) -> tuple[str, ...]:
    return "data.source=text", f"data.path={path}"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "short.txt").write_text("just a few words\n" * 3)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 100)
    (tmp_path / "utf16.txt").write_bytes("words".encode("utf-16-le") * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a-file").write_text("in the way")
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "not-a-run/notes.txt").write_text("keep me")
    (tmp_path / "broken.yaml").write_text("train: [")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ((*TRAIN, "train.max_step=3"), ["unknown setting train.max_step: did you mean train.max_steps?"]),
        ((*TRAIN, "trian.seed=1", "train.batch_size=-1", "data.seq_len=999"),
         ["3 problems", "did you mean train.seed?", "train.batch_size=-1", "data.seq_len=999 is longer than"]),
        ((*TRAIN, "train.compile=maybe", "train.batch_size=biggest", "train.ema_decay=1", "train.optimizer=lion",
          "train.profile=some", "train.spike=-1", "train.batch_warmup_steps=99"),
         ["7 problems", "train.compile='maybe': input should be 'auto', 'on' or 'off'", "auto (or 0) = the largest",
          "train.ema_decay=1: input should be less than 1",
          "train.optimizer='lion': input should be 'auto', 'adamw' or 'muon'", "train.profile='some'",
          "train.spike=-1", "train.batch_warmup_steps=99 is longer than train.max_steps=20"]),
        ((*TRAIN, "model.kind=bdh", "model.shape.zero_init=true"), ["zero_init are for gpt and llama: a bdh has none"]),
        ((*TRAIN, "model.kind=bdh", "train.optimizer=muon"), ["train.optimizer=muon", "a bdh has none: use adamw"]),
        ((*TRAIN, "model.kind=builder", "model.ref=x", "model.shape.qk_norm=true", "model.shape.zero_init=true"),
         ["2 problems", "model.shape.qk_norm is for gpt and llama", "model.shape.zero_init is for gpt and llama"]),
        ((*TRAIN, "train.memory_limit_gb=0.01"),
         ["train.memory_limit_gb=0.01 is less than is taken before the first step", "raise it"]),
        ((*TRAIN, "train.answers_every_eval=2"), ["need a seq2seq model, pairs (data.target_field) or chats"]),
        (("find-rate", "--steps", "3"), ["3 steps: a range test takes 10 to 10,000"]),
        (("find-rate", "--from", "1", "--to", "0.1"), ["learning rates from 1 to 0.1: the first must be above 0"]),
        (("find-rate", "train.optimiser=muon"), ["unknown setting train.optimiser: did you mean train.optimizer?"]),
        (("find-rate", "-p", "debug", "model.shape.vocab_size=9"), ["smaller than the tokenizer's vocabulary of 256"]),
        (("layers", "runs/none"), ["no run at runs/none"]),
        (("layers",), ["no runs in runs/ yet"]),
        (("train", "--preset", "quikstart"), ["unknown preset quikstart: did you mean quickstart?"]),
        (("train", "--config", "nowhere.yaml"), ["no file nowhere.yaml"]),
        (("train", "--config", "broken.yaml"), ["broken.yaml is not YAML"]),
        ((*TRAIN, "max_steps"), ["'max_steps' is not a setting: write key.path=value"]),
        ((*TRAIN, "data.source=text"), ["data.source=text needs data.path=FILE_OR_FOLDER"]),
        ((*TRAIN, *from_file("nowhere.txt")), ["data.path=nowhere.txt: no such file or folder"]),
        ((*TRAIN, *from_file("folder")), ["holds no .txt or .md file"]),
        ((*TRAIN, *from_file("empty.txt")), ["data.path=empty.txt is empty"]),
        ((*TRAIN, *from_file("blank.txt")), ["data.path=blank.txt is empty"]),
        ((*TRAIN, *from_file("picture.png")), ["picture.png: this is no text but a picture (PNG)"]),
        ((*TRAIN, *from_file("latin.txt")), ["latin.txt line 1: not UTF-8 text: byte 0xe9 at offset 3", "iconv"]),
        ((*TRAIN, *from_file("utf16.txt")), ["utf16.txt: this looks like UTF-16", "iconv"]),
        ((*TRAIN, *from_file("short.txt")), ["there is only one document (51 characters)", "data.document"]),
        ((*TRAIN[:3], "--run-dir", "a-file/x"), ["the run folder a-file/x cannot be written"]),
        ((*TRAIN[:3], "--run-dir", "a-file"), ["a-file exists and is not a run folder"]),
        ((*TRAIN[:3], "--run-dir", "not-a-run"), ["not-a-run exists and is not a run folder"]),
        ((*TRAIN, "model.shape.vocab_size=100"), ["vocab_size=100 is smaller than the tokenizer's vocabulary of 256"]),
        ((*TRAIN, "train.precision=fp16", "train.device=cpu"), ["train.precision=fp16 needs a CUDA GPU"]),
        (("generate", "runs/none", "--prompt", "x"), ["no run at runs/none"]),
        (("generate", "not-a-run"), ["no run at not-a-run"]),
        (("status", "runs/none"), ["no run at runs/none"]),
        (("status",), ["no runs in runs/ yet"]),
        (("summary", "nothing"), ["nothing of that name here", "presets: bdh-small, debug"]),
        (("validate", "quickstart", "--tier", "1,4"), ["--tier 1,4: give some of 1, 2 and 3"]),
        (("validate", "quickstart", "--save", "nowhere/page.html"), ["the folder nowhere is not there"]),
        (("train", "--model", "short.txt"), ["short.txt"]),
        (("train", "model.kind=builder"), ["model.kind=builder needs model.ref=WHERE_IT_IS"]),
        (("train", "model.ref=book"), ["model.ref=book is only read with model.kind=builder, hub or folder"]),
        (("train", "model.kind=builder", "model.ref=nothing"), ["nothing of that name here"]),
        (("train", "data.task=masked"), ["data.task=masked needs another model: a llama predicts the next token"]),
        (("train", "model.trust_sha256=abc"), ["model.trust_sha256='abc'"]),
        (("data", "inspect", *from_file("empty.txt")), ["data.path=empty.txt is empty"]),
        (("notebook", "run", "none.ipynb"), ["no notebook none.ipynb"]),
        (("notebook", "run", "short.txt"), ["short.txt is not a notebook"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_one_clear_message(tbt, texts: Path, words: tuple[str, ...], messages: list[str]):
    before = sorted(texts.rglob("*"))
    got = tbt(*words)
    assert got.returncode == 2, got.stdout + got.stderr
    assert got.stderr.removeprefix(FINDING * got.stderr.count(FINDING)).startswith("error: ")
    assert "Traceback" not in got.stderr
    for message in messages:
        assert message in got.stderr
    left = [path for path in sorted(texts.rglob("*")) if path not in before]
    assert left == [] or left == [texts / "runs"]


def test_answers_without_the_library_that_scores_them(tbt, texts: Path):
    (texts / "sacrebleu.py").write_text("raise ImportError('not installed')")
    (texts / "pairs.csv").write_text("question,answer\n" + "".join(f"what is {i},it is {i}\n" for i in range(60)))
    before = sorted(texts.rglob("*"))
    pairs = ("data.source=csv", "data.path=pairs.csv", "data.text_field=question", "data.target_field=answer")
    got = tbt(*TRAIN, *pairs, "train.answers_every_eval=2", env={"PYTHONPATH": f"{texts}:{ROOT}"})
    assert got.returncode == 2, got.stdout + got.stderr
    assert got.stderr.endswith("needs sacrebleu: pip install sacrebleu\n")
    assert "Traceback" not in got.stderr
    assert [path for path in sorted(texts.rglob("*")) if path not in before and path.parent.name == "runs"] == []


@needs_walls
def test_an_export_cannot_compute_its_layers_twice(tbt, texts: Path):
    model = ROOT / "tests" / "exports" / "encoder"
    got = tbt("train", "-p", "debug", "--model", model, "--run-dir", "runs/x", "train.activation_checkpointing=true")
    assert got.returncode == 2, got.stdout + got.stderr
    assert got.stderr.splitlines()[-1].startswith("error: train.activation_checkpointing=true cannot be done for ")
    assert "Traceback" not in got.stderr
    assert not (texts / "runs/x").exists()


def test_a_read_only_folder(tbt, texts: Path):
    import os
    import subprocess

    place = texts / "locked"
    place.mkdir()
    if os.geteuid() == 0:  # root may write everywhere but on what is mounted read-only
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True)
        if mounted.returncode:
            pytest.skip("root may write everywhere, and nothing may be mounted here")
    else:
        place.chmod(0o555)
    try:
        got = tbt(*TRAIN[:3], "--run-dir", "locked/x")
        assert got.returncode == 2
        assert got.stderr.startswith("error: the run folder locked/x cannot be written")
        assert list(place.iterdir()) == []
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(place)], check=True)
