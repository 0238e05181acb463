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
    chosen = plan(run, words, checkpoint=checkpoint, **wanted)
    apply(run, chosen)
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
    (resumed,) = run.events("resumed")
    assert (resumed["level"], resumed["changed"]) == ("changed", ["train.max_steps: 12 -> 20"])


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
    assert run.events("rewound")[0]["text"].startswith(
        "back to step 4, as was asked for; later checkpoints set aside: "
    )
    assert run.events("resumed")[0]["level"] == "exact"
    assert weights_hash(run.path) == weights_hash(finished)
    assert metrics_of(run.path) == metrics_of(finished)


def test_what_changes_no_weight_may_change(run: RunFolder, finished: Path):
    go_on(run, "train.eval_every=2", "train.log_every=3", "train.sample_every=0", checkpoint="8")
    assert weights_hash(run.path) == weights_hash(finished)


def test_the_same_examples_in_other_portions_are_no_other_step(run: RunFolder):
    go_on(run, "train.batch_size=2", "train.grad_accum_steps=4", checkpoint="8")
    assert run.state()["step"] == 12
    (resumed,) = run.events("resumed")  # dropout and sums are others, so it is not called exact
    assert resumed["level"] == "changed"
    assert set(resumed["changed"]) == {"train.batch_size: 4 -> 2", "train.grad_accum_steps: 2 -> 4"}


def test_another_number_format_is_gone_on_with_and_named(run: RunFolder):
    go_on(run, "train.precision=bf16", checkpoint="8")
    (resumed,) = run.events("resumed")
    assert resumed["level"] == "continuous"
    assert "precision: fp32 -> bf16" in resumed["changed"]
    go_on(run, "train.precision=fp32", checkpoint="latest", more_steps=2)  # back again: 16 bits of what was saved
    assert run.state()["step"] == 14


def test_a_run_of_epochs_ends_later_in_epochs(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run_training(tiny_config(run.path, "train.max_steps=0", "train.epochs=0.05", "train.warmup_steps=50"))
    planned = run.state()["total_steps"]
    go_on(run, more_steps=4)
    assert abs(run.state()["total_steps"] - planned - 4) <= 1
    assert run.config().train.max_steps == 0
    with pytest.raises(ValueError, match="the run cannot end at step"):
        plan(run, ["train.epochs=0.01"])


def test_rows_of_steps_that_are_done_again_with_other_settings_count_no_more(run: RunFolder):
    go_on(run, "train.log_every=4", checkpoint="4")
    assert [row["step"] for row in run.metrics() if row["kind"] == "train"] == [1, 2, 3, 4, 8, 12]


def test_an_end_before_the_checkpoint_is_refused_and_one_behind_an_earlier_checkpoint_is_not(run: RunFolder):
    with pytest.raises(ValueError, match="12 steps are done already: the run cannot end at step 10"):
        plan(run, ["train.max_steps=10"])
    assert plan(run, ["train.max_steps=10"], checkpoint="8").step == 8


def test_a_plan_is_not_applied_to_a_run_that_has_changed_since(run: RunFolder):
    one, other = plan(run, more_steps=4), plan(run, ["train.log_every=5"])
    apply(run, one)
    with pytest.raises(BlockingIOError, match="has just been changed by somebody else"):
        apply(run, other)
    assert (run.config().train.max_steps, run.config().train.log_every) == (16, 1)


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
        plan(run, checkpoint="5")
    assert not run.events("rewound")
