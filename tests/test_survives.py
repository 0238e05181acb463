"""What goes wrong in the midst of a run is survived: through the command line, with the result a user wants."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.runs.checkpoints import newest_checkpoint
from utils.runs.folder import RunFolder
from utils.tests.walls import needs_walls

STEPS = 50
QUICK = (
    "data.size=20000", "data.seq_len=32", "train.batch_size=8", f"train.max_steps={STEPS}", "train.warmup_steps=5",
    "train.eval_every=20", "train.eval_batches=4", "train.save_every=10", "train.log_every=1", "train.threads=1",
    "train.schedule=cosine", "train.min_lr=3e-4",
)  # fmt: skip

# Its calls in training are counted in a buffer, which is saved with the weights: a run that goes back counts on from
# there. What must not happen again after that is told by the weights themselves: they are no longer those it met.
HARM = """
    def forward(self, input_ids):
        if self.training:
            self.calls += 1
        hidden = self.harmless(input_ids)
        where = self.calls.item() if self.training and torch.is_grad_enabled() else 0
"""
NAN = "        hidden = hidden * float('nan') if {first} <= where < {end} else hidden\n"
SPIKE = """
        if where == {first} and not self.met:
            self.met = True
            self.output_projection.weight.data.mul_(40.0)  # as a step of a rate far too high would leave them
"""


def export(folder: Path, harm: str) -> Path:
    """tests/exports/decoder with something built in that goes wrong."""
    shutil.copytree(ROOT / "tests" / "exports" / "decoder", folder)
    code = (folder / "model.py").read_text()
    counter = "        self.register_buffer('calls', torch.zeros((), dtype=torch.int64))\n        self.met = False\n"
    start = "        self.output_projection = nn.Linear(d_model, vocab_size)\n"
    assert code.count(start) == 1
    code = code.replace(start, start + counter).replace(
        "def forward(self, input_ids):", "def harmless(self, input_ids):"
    )
    whole = code.partition("\n\nif __name__")[0] + HARM + harm + "        return hidden\n"
    (folder / "model.py").write_text(whole)
    return folder


def train(tbt, folder: Path, model: Path, *words: object) -> tuple[str, RunFolder]:
    """The output of a run that completes, and the run."""
    done = tbt("train", "model.kind=builder", f"model.ref={model}", *QUICK, *words, "--run-dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(folder)
    assert run.status() == "completed"
    assert run.state()["step"] == STEPS
    return done.stdout, run


@needs_walls
def test_losses_that_are_no_number_and_then_a_model_that_breaks(tbt, tmp_path: Path):
    """Three steps are left out; later all that was learned is lost, and the run goes back to where it was whole."""
    harm = NAN.format(first=13, end=16) + SPIKE.format(first=27)
    said, run = train(tbt, tmp_path / "run", export(tmp_path / "harmed", harm))
    _, undisturbed = train(tbt, tmp_path / "undisturbed", export(tmp_path / "harmless", ""))
    # Three steps fewer, and the rest was learned at half the rate.
    assert run.state()["val_loss"] == pytest.approx(undisturbed.state()["val_loss"], abs=0.3)
    assert len(run.events("skipped")) == run.state()["skipped"] == 3
    (back,) = run.events("rolled_back")
    assert "and stayed up: back to step 20, with 0.5 of the learning rate" in back["text"]
    losses = [row["train/loss"] for row in run.metrics() if row["kind"] == "train"]
    assert len(losses) == STEPS
    assert max(losses[20:]) < max(losses[:5])  # what the chart shows is what has become of it
    lines = said.splitlines()  # and who watched was told of each, once
    assert len([line for line in lines if line.endswith("the step was left out")]) == 3
    assert lines.count(f"step {back['step']}: {back['text']}") == 1


@needs_walls
@pytest.mark.slow  # test_guard has it within one process
def test_a_model_that_never_gets_well_fails_in_words(tbt, tmp_path: Path):
    model = export(tmp_path / "export", NAN.format(first=13, end=10**6))
    done = tbt("train", "model.kind=builder", f"model.ref={model}", *QUICK, "--run-dir", "run")
    assert done.returncode == 1
    assert "not finite in 5 steps in a row" in done.stderr
    assert "having gone back 3 times: training cannot go on" in done.stderr
    assert "try a lower train.learning_rate" in done.stderr
    folder, damaged = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert folder is not None
    assert not damaged
    assert tbt("generate", "run", "--prompt", "Once", "--max-new-tokens", 3).returncode == 0


LARGE = (
    "--preset", "debug", "data.size=20000", "model.shape.n_layer=4", "model.shape.n_embd=64",
    "model.shape.block_size=256", "model.shape.dropout=0", "data.seq_len=256", "train.batch_size=32",
    "train.max_steps=4", "train.warmup_steps=0", "train.eval_every=2", "train.eval_batches=2", "train.log_every=1",
    "train.sample_every=0", "train.threads=1", "train.compile=off", "train.precision=fp32",
)  # fmt: skip
ROOM = 0.2  # GB, of which modules that are imported later take half: less than the activations of a step


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory a process maps")
def test_too_little_memory(tbt, tmp_path: Path):
    done = tbt("train", *LARGE, "train.memory_limit_gb=0.01", "--run-dir", "none")
    assert done.returncode == 2
    taken = re.search(
        r"train.memory_limit_gb=0.01 is less than is taken before the first step \((\S+) GB\)", done.stderr
    )
    assert taken, done.stderr
    assert not (tmp_path / "none").exists()

    assert tbt("train", *LARGE, "--run-dir", "plain").returncode == 0
    done = tbt("train", *LARGE, f"train.memory_limit_gb={float(taken[1]) + ROOM:.2f}", "--run-dir", "tight")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "tight")
    told = run.events("out_of_memory")
    assert told, "there was memory enough"
    assert told[-1]["rows"] == run.state()["rows"] < 32
    assert f"memory ran out: {told[-1]['rows']} at once from now on" in done.stdout
    for a, b in zip(RunFolder(tmp_path / "plain").metrics(), run.metrics(), strict=True):
        key = "train/loss" if a["kind"] == "train" else "val/loss"
        assert b[key] == pytest.approx(a[key], rel=1e-3)


@needs_walls
@pytest.mark.slow  # test_batch_size has it without walls
def test_the_largest_batch_is_found_behind_walls(tbt, tmp_path: Path):
    said, run = train(
        tbt, tmp_path / "run", ROOT / "tests" / "exports" / "decoder", "train.batch_size=auto", "data.size=3000"
    )
    found = run.read_json("meta")["made_with"]["batch_size"]
    assert found & (found - 1) == 0
    assert f"train.batch_size=auto is {found}" in run.events("note")[0]["text"]
    assert f"step 0: train.batch_size=auto is {found}" in said
