"""Going on with a run: further, from an earlier checkpoint, with other settings; and what is refused."""

import shutil
from pathlib import Path

import pytest

from utils.jobs.resume import apply, plan
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.training.run import run_training


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert run_training(tiny_config(run, "checkpoint.keep_last=9")).status == "completed"
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    """A copy of a finished run, in another folder."""
    shutil.copytree(finished, tmp_path / "moved")
    return RunFolder(tmp_path / "moved")


def go_on(run: RunFolder, *words: str, checkpoint: str = "latest", **wanted) -> RunFolder:
    """What `tbt resume` does, in this process."""
    chosen = plan(run, words, **wanted)
    apply(run, chosen, checkpoint)
    assert run_training(chosen.config).status == "completed"
    return run


def test_a_finished_run_goes_further(run: RunFolder):
    chosen = plan(run, more_steps=8)
    assert chosen.changed == ("train.max_steps: 12 -> 20",)
    (note,) = chosen.notes
    assert note.startswith("the run ends at step 20 (planned: 12); the schedule (wsd) is stretched to it: at step 12 ")
    go_on(run, more_steps=8)
    assert run.status() == "completed"
    assert (run.state()["step"], run.config().train.max_steps) == (20, 20)
    assert [row["step"] for row in run.metrics() if row["kind"] == "train"] == list(range(1, 21))
    (event,) = run.events("settings")
    assert event["changed"] == ["train.max_steps: 12 -> 20"]
    assert run.events("resumed")[0]["level"] == "exact"


def test_epochs_are_turned_into_steps_where_the_run_counts_steps(run: RunFolder):
    state = run.state()
    more = round(2 * state["step"] / state["epoch"])
    assert plan(run, more_epochs=2).changed == (f"train.max_steps: 12 -> {12 + more}",)


def test_an_early_end_is_gone_past(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run_training(tiny_config(run.path, "train.patience=1", "train.learning_rate=0.5", "train.min_lr=0.5",
                             "train.eval_every=1", "train.optimizer=adamw"))  # fmt: skip
    early = run.state()["step"]
    assert run.state()["stopped_early"]
    assert early < 12
    go_on(run, "train.patience=0", more_steps=1)
    assert run.state()["step"] == 13


def test_an_earlier_checkpoint_leads_to_the_same_end(run: RunFolder, finished: Path):
    go_on(run, checkpoint="4")
    assert run.events("resumed")[0]["step"] == 4
    assert run.events("rewound")[0]["text"].startswith("back to step 4, as was asked for; later checkpoints removed: ")
    assert weights_hash(run.path) == weights_hash(finished)
    assert metrics_of(run.path) == metrics_of(finished)


def test_what_changes_no_weight_may_change(run: RunFolder, finished: Path):
    go_on(run, "train.eval_every=2", "train.log_every=3", "train.sample_every=0", checkpoint="8")
    assert weights_hash(run.path) == weights_hash(finished)


def test_the_same_examples_in_other_portions_are_no_other_step(run: RunFolder):
    go_on(run, "train.batch_size=8", "train.grad_accum_steps=1", checkpoint="8")
    assert run.state()["step"] == 12


def test_what_changes_the_weights_has_to_be_accepted(run: RunFolder):
    before = run.config()
    with pytest.raises(ValueError, match=r"learning_rate: 0.003 -> 0.001 changes what is learned: say --accept"):
        plan(run, ["train.learning_rate=1e-3"], more_steps=4)
    assert run.config() == before
    go_on(run, "train.learning_rate=1e-3", more_steps=4, accept=["train.learning_rate"])
    assert run.config().train.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("words", "wanted", "said"),
    [
        (["model.shape.n_layer=2"], {}, "model.shape.n_layer: 1 -> 2 makes it another run"),
        (["data.tokenizer=char"], {"accept": ["data.tokenizer"]}, "data.tokenizer: 'byte' -> 'char' makes it another"),
        (["train.batch_size=16"], {}, "train.batch_size: 4 -> 16 changes which examples a step learns from"),
        ([], {"accept": ["train.lerning_rate"]}, "--accept train.lerning_rate: there is no such setting"),
        (["train.max_steps=7"], {}, "12 steps are done already: the run cannot end at step 7"),
        ([], {"more_steps": 1, "more_epochs": 1.0}, "only one of them"),
        (["train.learning_rat=1"], {}, "did you mean train.learning_rate?"),
    ],
)
def test_what_cannot_change_is_said(run: RunFolder, words, wanted, said: str):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        plan(run, words, **wanted)


def test_a_run_that_is_being_trained_is_left_alone(run: RunFolder):
    chosen = plan(run, more_steps=4)
    with RunLock(run.path), pytest.raises(BlockingIOError, match="is being trained: `tbt stop"):
        apply(run, chosen)
    assert run.config().train.max_steps == 12


def test_a_checkpoint_that_is_not_there_changes_nothing(run: RunFolder):
    with pytest.raises(FileNotFoundError, match="no whole checkpoint '5'"):
        apply(run, plan(run), "5")
    assert not run.events("rewound")
