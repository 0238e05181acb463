"""What goes wrong in the midst of a run is survived: through the command line, with the result a user wants."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.runs.checkpoints import newest_checkpoint
from utils.runs.folder import RunFolder
from utils.tests.walls import needs_walls

QUICK = (
    "data.size=20000", "data.seq_len=32", "train.batch_size=8", "train.max_steps=80", "train.warmup_steps=5",
    "train.eval_every=20", "train.eval_batches=4", "train.save_every=10", "train.log_every=1", "train.threads=1",
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
NAN = "        return hidden * float('nan') if {first} <= where < {end} else hidden\n"
SPIKE = """
        if where == {first} and not self.met:
            self.met = True
            self.output_projection.weight.data.mul_(40.0)  # as a step of a rate far too high would leave them
        return hidden
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
    (folder / "model.py").write_text(
        code.replace('\n\nif __name__ == "__main__":', HARM + harm + '\n\nif __name__ == "__main__":')
    )
    return folder


def train(tbt, folder: Path, model: Path, *words: object) -> tuple[str, RunFolder]:
    """The output of a run that completes, and the run."""
    done = tbt("train", "model.kind=builder", f"model.ref={model}", *QUICK, *words, "--run-dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(folder)
    assert run.status() == "completed"
    assert run.state()["step"] == 80
    return done.stdout + done.stderr, run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> float:
    """The validation loss of the same run without harm."""
    import os
    import subprocess

    folder = tmp_path_factory.mktemp("undisturbed")
    model = export(folder / "export", NAN.format(first=-2, end=-1))
    words = ["train", "model.kind=builder", f"model.ref={model}", *QUICK, "--run-dir", "run"]
    subprocess.run([sys.executable, "-m", "utils", *words], cwd=folder, check=True, capture_output=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300)  # fmt: skip
    return RunFolder(folder / "run").state()["val_loss"]


@needs_walls
def test_three_losses_that_are_no_number(tbt, tmp_path: Path, undisturbed: float):
    _, run = train(tbt, tmp_path / "run", export(tmp_path / "export", NAN.format(first=33, end=36)))
    assert run.state()["val_loss"] == pytest.approx(undisturbed, abs=0.15)
    assert len(run.events("skipped")) == run.state()["skipped"] == 3
    assert not run.events("rolled_back")


@needs_walls
def test_a_model_that_breaks_goes_back_to_where_it_was_whole(tbt, tmp_path: Path, undisturbed: float):
    _, run = train(tbt, tmp_path / "run", export(tmp_path / "export", SPIKE.format(first=47)))
    assert run.state()["val_loss"] == pytest.approx(undisturbed, abs=0.3)  # the rest was learned at half the rate
    (back,) = run.events("rolled_back")
    assert "and stayed up: back to step 40, with 0.5 of the learning rate" in back["text"]
    losses = [row["train/loss"] for row in run.metrics() if row["kind"] == "train"]
    assert len(losses) == 80
    assert max(losses[40:]) < max(losses[:5])  # what the chart shows is what has become of it


@needs_walls
def test_a_model_that_never_gets_well_fails_in_words(tbt, tmp_path: Path):
    model = export(tmp_path / "export", NAN.format(first=33, end=10**6))
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
    "train.max_steps=6", "train.warmup_steps=0", "train.eval_every=3", "train.eval_batches=2", "train.log_every=1",
    "train.threads=1", "train.compile=off",
)  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory a process maps")
def test_too_little_memory(tbt, tmp_path: Path):
    plain = tbt("train", *LARGE, "--run-dir", "plain")
    assert plain.returncode == 0, plain.stderr
    rows = []
    for gigabytes in (0.6, 0.5, 0.45):  # what Python and torch take before the first step is not ours to say
        done = tbt("train", *LARGE, f"train.memory_limit_gb={gigabytes}", "--run-dir", f"tight-{gigabytes}")
        assert done.returncode == 0, done.stdout + done.stderr
        run = RunFolder(tmp_path / f"tight-{gigabytes}")
        rows = run.events("out_of_memory")
        if rows:
            break
    assert rows, "there was memory enough"
    assert f"memory ran out: {rows[-1]['rows']} at once from now on" in rows[-1]["text"]
    assert rows[-1]["rows"] == run.state()["rows"] < 32
    assert run.status() == "completed"
    whole, tight = (RunFolder(tmp_path / name).metrics() for name in ("plain", run.path.name))
    for a, b in zip(whole, tight, strict=True):
        key = "train/loss" if a["kind"] == "train" else "val/loss"
        assert b[key] == pytest.approx(a[key], rel=1e-3)


def test_a_limit_below_what_is_needed_to_begin_is_a_wrong_request(tbt, tmp_path: Path):
    done = tbt("train", *LARGE, "train.memory_limit_gb=0.01", "--run-dir", "run")
    assert done.returncode == (2 if sys.platform == "linux" else 0)
    if done.returncode:
        assert "train.memory_limit_gb=0.01 is less than is taken before the first step" in done.stderr
        assert not (tmp_path / "run").exists()


@needs_walls
def test_the_largest_batch_is_found_behind_walls(tbt, tmp_path: Path):
    _, run = train(
        tbt, tmp_path / "run", ROOT / "tests" / "exports" / "decoder", "train.batch_size=auto", "data.size=3000"
    )
    found = run.read_json("meta")["made_with"]["batch_size"]
    assert found & (found - 1) == 0
    assert f"train.batch_size=auto is {found}" in run.events("note")[0]["text"]
