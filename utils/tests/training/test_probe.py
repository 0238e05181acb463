"""A resume says at which level it goes on, and proves it by a loss that was saved."""

import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.data.batching.batches import EvalBatches
from utils.data.batching.tasks import TaskBatches
from utils.runs.checkpoints import newest_checkpoint, verify
from utils.runs.folder import RunFolder
from utils.tests.tiny import tiny_config, weights_hash
from utils.training.checkpoint import _write_manifest
from utils.training.probe import Few, differs
from utils.training.run import run_training


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A run that was interrupted at its eighth step."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "cut")
    config = tiny_config(run.path)
    assert run_training(config, lambda: signal.SIGINT if run.state().get("step") == 8 else None).signal
    return run.path


@pytest.fixture
def run(cut: Path, tmp_path: Path) -> RunFolder:
    """A copy of it, in another folder."""
    shutil.copytree(cut, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def change_probe(run: RunFolder, times: float) -> float:
    """Make the newest checkpoint, which stays a whole one, say another loss; gives back what it said."""
    folder, _ = newest_checkpoint(run.checkpoints)
    assert folder is not None
    state = json.loads((folder / "trainer.json").read_text())
    before = float.fromhex(state["probe"])
    state["probe"] = (before * times).hex()
    (folder / "trainer.json").write_text(json.dumps(state))
    (folder / "MANIFEST.json").unlink()
    _write_manifest(folder, state["step"])
    assert verify(folder) is not None
    return before


def resumed(run: RunFolder) -> dict:
    assert run_training(tiny_config(run.path)).status == "completed"
    (event,) = run.events("resumed")
    return event


def test_the_same_machine_goes_on_exactly(run: RunFolder):
    saved = change_probe(run, 1.0)
    event = resumed(run)
    assert (event["level"], event["changed"], event["probe"]) == ("exact", [], saved)
    assert event["text"] == "went on from step-0000000008, exact: as if never interrupted"


def test_another_version_goes_on_and_says_so(run: RunFolder):
    meta = run.read_json("meta")
    ours = meta["made_with"]["torch"]
    run.write_json("meta", {**meta, "made_with": {**meta["made_with"], "torch": "1.0"}})
    event = resumed(run)
    assert (event["level"], event["changed"]) == ("continuous", [f"torch: 1.0 -> {ours}"])
    assert event["text"].startswith("went on from step-0000000008, continuous: rounded otherwise from here on (torch:")


def test_a_probe_that_rounds_otherwise_is_not_called_exact(run: RunFolder):
    saved = change_probe(run, 1 + 1e-7)
    event = resumed(run)
    assert event["level"] == "continuous"
    assert event["changed"] == [f"the probe loss is {saved:.9g}, saved was {saved * (1 + 1e-7):.9g}"]


def test_the_probe_is_the_same_whatever_the_batch_size():
    ids = np.arange(1000) % 50
    few = [Few(TaskBatches(EvalBatches(ids, 16, size))).batch(0) for size in (1, 3, 64)]
    assert [len(batch.labels) for batch in few] == [4, 4, 4]
    assert all(torch.equal(batch.inputs[0], few[0].inputs[0]) for batch in few)


@pytest.mark.parametrize(
    ("before", "now", "formats", "said"),
    [(2.0, 2.0, ["fp32"], ""), (math.nan, math.nan, ["fp16"], ""), (2.0, 2.00001, ["fp32"], "the probe"),
     (2.0, 2.01, ["fp32", "bf16"], "the probe"), (0.0, 1e-6, ["fp32"], "the probe")],
)  # fmt: skip
def test_how_far_a_probe_may_be_off(before: float, now: float, formats: list[str], said: str):
    assert differs(before, now, *formats).startswith(said)
    assert bool(differs(before, now, *formats)) == bool(said)


@pytest.mark.parametrize(("before", "now"), [(2.0, 2.01), (2.0, math.nan), (math.nan, 2.0), (0.0, 1e-3)])
def test_a_probe_that_is_too_far_off_is_refused(before: float, now: float):
    with pytest.raises(ValueError, match="these are not the weights"):
        differs(before, now, "fp32")


def test_weights_that_are_not_those_saved_are_refused(run: RunFolder):
    change_probe(run, 1.01)
    before = weights_hash(run.path)
    with pytest.raises(ValueError, match="these are not the weights, the text or the code that were saved"):
        run_training(tiny_config(run.path))
    assert weights_hash(run.path) == before
    assert not run.events("resumed")


def test_a_checkpoint_without_a_probe_is_gone_on_from(run: RunFolder):
    folder, _ = newest_checkpoint(run.checkpoints)
    assert folder is not None
    state = json.loads((folder / "trainer.json").read_text())
    del state["probe"]
    (folder / "trainer.json").write_text(json.dumps(state))
    (folder / "MANIFEST.json").unlink()
    _write_manifest(folder, state["step"])
    assert resumed(run)["probe"] is None
