"""`tbt evaluate`: the numbers of the training come back, on any side, and a run's folder is not trusted with more."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from utils.cli.evaluate import lines as table_of
from utils.cli.main import app
from utils.jobs.evaluate import _clean as clean
from utils.jobs.evaluate import evaluate_run
from utils.runs.folder import RunFolder
from utils.runtime.files import sha256_file
from utils.tests.tiny import tiny_config
from utils.tests.walls import needs_walls
from utils.training.run import run_training

ROOT = Path(__file__).parents[3]
WORDS = ("the", "a", "one", "old", "new", "red", "quick", "lazy", "brown", "fox", "dog", "hen", "jumps", "sleeps",
         "runs", "over", "under", "near", "hill", "river", "tree")  # fmt: skip


def lines(n: int) -> str:
    return "".join(" ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 12)) + f" {i}\n" for i in range(n))


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the stories whose every evaluation was on the whole validation text."""
    run = tmp_path_factory.mktemp("runs") / "stories"
    run_training(tiny_config(run, "train.eval_batches=0"))
    return run


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on lines of text, some of which it kept for the very end."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "book.txt").write_text(lines(400))
    where = [f"data.path={folder / 'book.txt'}", "data.source=text", "data.document=line", "data.test_fraction=0.3"]
    run_training(tiny_config(folder / "run", *where, "data.val_fraction=0.1", "data.duplicates=ignore"))
    return folder / "run"


def told(*words: object) -> dict:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_the_loss_of_the_training_comes_back(stories: Path):
    state, found = RunFolder(stories).state(), told(stories)
    (row,) = [r for r in RunFolder(stories).metrics() if r["kind"] == "val" and r["step"] == state["best_step"]]
    assert found["loss"] == pytest.approx(state["best_val_loss"], rel=1e-6)
    assert found["accuracy"] == pytest.approx(row["val/accuracy"])
    assert found["top5"] == pytest.approx(row["val/top5"])
    assert found["accuracy"] < found["top5"] < 1
    assert found["bleu"] is found["confusion"] is None
    assert found["bits_per_byte"] == pytest.approx(row["val/bits_per_byte"], rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert 0.01 < found["entropy_floor"] < found["loss"]
    assert (found["task"], found["on"], found["step"]) == ("causal", "val", state["best_step"])
    assert found["run"] == str(stories)


def test_another_checkpoint_is_another_number(stories: Path):
    steps = sorted(int(path.name[5:]) for path in (stories / "checkpoints").glob("step-*"))
    found = {step: told(stories, "--checkpoint", step) for step in steps[-2:]}
    assert [each["step"] for each in found.values()] == steps[-2:]
    assert len({each["loss"] for each in found.values()}) == 2
    assert told(stories, "--checkpoint", "latest") == found[steps[-1]]


def test_the_test_side_is_other_text(book: Path):
    val, test = told(book), told(book, "--on", "test")
    assert (val["on"], test["on"]) == ("val", "test")
    assert val["loss"] != test["loss"]
    assert test["labels"] > 1.5 * val["labels"]
    assert val["entropy_floor"] is test["entropy_floor"] is None
    assert 0 < test["bits_per_byte"] < 10


def test_a_person_reads_a_table(stories: Path):
    command = [sys.executable, "-m", "utils", "evaluate", str(stories)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.startswith(f"run: {stories}, step ")
    assert head.endswith("validation text")
    assert [row[:20].strip() for row in rows] == [
        "loss", "perplexity", "accuracy", "top-5 accuracy", "bits per byte", "best possible loss",
    ]  # fmt: skip
    assert "nats per token" in rows[0]


def test_what_a_model_writes_stays_on_its_line():
    written = {"prompt": "p\x1b[2J", "answer": "a\n\nb", "reference": "r"}
    told = {"task": "causal", "on": "val", "run": "r", "step": 3, "loss": 1.0, "perplexity": 2.7, "labels": 9,
            "accuracy": 0.5, "macro_f1": None, "confusion": None, "classes": [], "written": [written],
            **dict.fromkeys(("top5", "bits_per_byte", "entropy_floor", "bleu", "chrf"))}  # fmt: skip
    assert table_of(told)[-3:] == [
        "prompt              p?[2J", "answer              a b", "reference           r",
    ]  # fmt: skip


def test_a_classifier_s_mistakes_are_named():
    told = {"task": "classification", "on": "val", "run": "r", "step": 3, "loss": 1.0, "perplexity": 2.7, "labels": 9,
            "accuracy": 0.5, "macro_f1": 0.4, "confusion": [[3, 2], [4, 0]], "classes": ["cat"], "written": [],
            **dict.fromkeys(("top5", "bits_per_byte", "entropy_floor", "bleu", "chrf"))}  # fmt: skip
    rows = table_of(told)
    assert "macro F1            0.400" in rows
    assert rows[-2:] == ["4 of class output 1 taken for cat", "2 of class cat taken for output 1"]


@pytest.mark.parametrize("lie", [
    {"top5": "x"}, {"bleu": float("nan")}, {"macro_f1": True}, {"loss": None}, {"written": [{"prompt": "p"}]},
    {"confusion": [[1, 2]]}, {"confusion": [[1, "2"], [3, 4]]}, {"confusion": 3}, {"task": "spying"},
])  # fmt: skip
def test_what_a_stranger_tells_is_checked(lie: dict):
    whole = {"task": "causal", "loss": 1.0, "accuracy": 0.5, "labels": 7, "confusion": [[1, 2], [3, 4]],
             "written": [{"prompt": "p\x1b[2J", "answer": "a", "reference": "r"}],
             **dict.fromkeys(("top5", "macro_f1", "bits_per_byte", "entropy_floor", "bleu", "chrf"))}  # fmt: skip
    assert clean(whole)["written"] == [{"prompt": "p?[2J", "answer": "a", "reference": "r"}]
    with pytest.raises((KeyError, TypeError, ValueError)):
        clean(whole | lie)


def test_what_cannot_be_is_said(stories: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"keeps no test documents: .* data\.test_fraction=0\.05 .* data\.test_from="):
        evaluate_run(stories, "test")
    with pytest.raises(ValueError, match="--on train: a model is evaluated on val"):
        evaluate_run(stories, "train")
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint '7' in .*; there are: best, latest"):
        evaluate_run(stories, checkpoint="7")
    with pytest.raises(ValueError, match=r"--answers -1: say how many"):
        evaluate_run(stories, answers=-1)
    with pytest.raises(ValueError, match=r"no answers to compare with .* --answers need a seq2seq model, pairs"):
        evaluate_run(stories, answers=2)
    with pytest.raises(FileNotFoundError, match="no run at"):
        evaluate_run(tmp_path / "nothing")


def moved(run: Path, to: Path, old: str = "", new: str = "") -> Path:
    """A copy of a run whose settings read otherwise in one place, and that remembers no store."""
    shutil.copytree(run, to)
    (to / "data.json").unlink(missing_ok=True)
    settings = (to / "config.yaml").read_text()
    assert old in settings
    (to / "config.yaml").write_text(settings.replace(old, new))
    return to


def test_a_function_that_a_run_folder_names_is_not_run(book: Path, tmp_path: Path):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n\ndef hook(row):\n    return row\n")
    run = moved(book, tmp_path / "run", "hook: ''", f"hook: {evil}:hook")
    with pytest.raises(ValueError, match=r"data\.hook=.*evil\.py:hook: if that function is yours, `tbt data prepare"):
        evaluate_run(run)
    assert not (tmp_path / "ran").exists()


def test_other_text_than_the_run_has_seen_is_refused(book: Path, tmp_path: Path):
    run = moved(book, tmp_path / "run", "test_fraction: 0.3", "test_fraction: 0.2")
    with pytest.raises(ValueError, match="was trained on other text"):
        evaluate_run(run, "test")


def test_a_store_outside_of_the_cache_is_not_opened(stories: Path, tmp_path: Path):
    run = moved(stories, tmp_path / "run")
    store = evaluate_store(run)
    shutil.copytree(store, tmp_path / "store")
    known = {"store": str(tmp_path / "store"), "fingerprint": json.loads((run / "meta.json").read_text())["data"]}
    (run / "data.json").write_text(json.dumps(known))
    assert evaluate_store(run) == store


def evaluate_store(run: Path) -> Path:
    from utils.jobs.evaluate import store_of

    return store_of(RunFolder(run), RunFolder(run).config()).folder


@needs_walls
def test_a_strangers_model_is_asked_behind_walls(tmp_path: Path):
    from utils.jobs.launch import prepare_inline

    export = shutil.copytree(ROOT / "tests" / "exports" / "decoder", tmp_path / "export")
    with (export / "model.py").open("a") as code:
        code.write(f"\ntry:\n    open({str(tmp_path / 'ran')!r}, 'a').write('x')\nexcept OSError:\n    pass\n")
    sha256 = sha256_file(export / "model.py")
    words = ["model.kind=builder", f"model.ref={export}", f"model.trust_sha256={sha256}", "train.eval_batches=0"]
    run_training(prepare_inline(tiny_config(tmp_path / "run", *words, "data.tokenizer=byte")))
    (tmp_path / "ran").unlink()  # it ran here by consent, and could write
    found = evaluate_run(tmp_path / "run")
    assert found["loss"] == pytest.approx(RunFolder(tmp_path / "run").state()["best_val_loss"], rel=1e-5)
    assert not (tmp_path / "ran").exists()
