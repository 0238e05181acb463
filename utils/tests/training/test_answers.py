"""Models that answer are asked: scores rise as a copy is learned, and asking changes nothing else."""

import json
import random
import sys
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from utils.cli.evaluate import lines
from utils.cli.main import app
from utils.config.schema import RunConfig
from utils.data.batching.tasks import eval_on
from utils.data.storing.token_store import open_store
from utils.jobs.launch import prepare_inline
from utils.models.load import load_model
from utils.notebook.display import show_metrics, show_samples
from utils.runs.folder import RunFolder
from utils.runtime.files import sha256_file
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.training.answers import Exam
from utils.training.evaluate import what_it_takes
from utils.training.run import run_training

EXPORT = Path(__file__).parents[3] / "tests" / "exports" / "encoder_decoder"
ASKED = "train.answers_every_eval=6"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose answer is their prompt's one word, four times: BLEU counts sequences of up to four words."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("copies") / "rows.jsonl"
    words = ["cat", "dog", "owl", "bee", "hen", "fox"]
    rows = [{"ask": f"{draw.choice(words)} {i % 10}{i % 7}"} for i in range(400)]
    path.write_text("".join(json.dumps(row | {"say": " ".join([row["ask"][:3]] * 4)}) + "\n" for row in rows))
    return path


def config(run: Path, rows: Path, *words: str, seq2seq: bool = True) -> RunConfig:
    sha256 = sha256_file(EXPORT / "model.py")
    model = ["model.kind=builder", f"model.ref={EXPORT}", f"model.trust_sha256={sha256}"] if seq2seq else []
    return prepare_inline(tiny_config(
        run, *model, "data.source=jsonl", f"data.path={rows}", "data.text_field=ask", "data.target_field=say",
        "data.tokenizer=bpe", "data.vocab_size=300", "data.duplicates=ignore", "data.seq_len=16",
        "train.sample_every=0", ASKED, *words,
    ))  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, copies: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "learned"
    longer = ("train.max_steps=80", "train.eval_every=40", "train.batch_size=16", "train.grad_accum_steps=1")
    run_training(config(run, copies, *longer, "train.learning_rate=1e-2", "train.save_every=0"))
    return run


def test_scores_rise_from_their_start(learned: Path, copies: Path):
    settings = RunFolder(learned).config()
    store = open_store(settings.data, EXPORT)
    new = load_model(settings.model, store.tokenizer.vocab_size, 1, learned / "source")
    batches = eval_on(store, settings.data, "val", 4, "seq2seq", **what_it_takes(new))
    start = Exam(store, settings.data, "seq2seq", "val", batches, 6).take(new)
    rows = [row for row in metrics_of(learned) if row["kind"] == "val"]
    assert start.bleu < 5
    assert rows[-1]["val/bleu"] > 60
    assert rows[-1]["val/chrf"] > start.chrf + 40


def test_answers_are_kept_and_shown(learned: Path):
    events = RunFolder(learned).events("answer")
    assert [event["step"] for event in events] == [40] * 3 + [80] * 3
    for event in events:
        assert event["reference"] == " ".join([event["prompt"][:3]] * 4)
    shown = str(show_samples(learned))
    assert f"wanted: {events[0]['reference']}" in shown
    assert {"BLEU", "chrF"} <= set(show_metrics(learned).header)


def test_a_checkpoint_gives_the_same_scores_afterwards(learned: Path):
    words = ["evaluate", str(learned), "--answers", "6", "--json", "--trust-sha256", sha256_file(EXPORT / "model.py")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    found = json.loads(done.stdout)
    (row,) = [row for row in metrics_of(learned) if row["kind"] == "val" and row["step"] == found["step"]]
    assert found["bleu"] == pytest.approx(row["val/bleu"])
    assert found["chrf"] == pytest.approx(row["val/chrf"])
    assert len(found["written"]) == 3
    read = lines(found)
    assert f"BLEU                {found['bleu']:.2f}" in read
    assert f"answer              {found['written'][0]['answer']}" in read


def test_asking_disturbs_nothing(copies: Path, tmp_path: Path):
    few = ("train.max_steps=6", "train.eval_every=3")
    for name, asked in (("asked", 2), ("left alone", 0)):
        run_training(config(tmp_path / name, copies, *few, f"train.answers_every_eval={asked}", seq2seq=False))
    assert weights_hash(tmp_path / "asked") == weights_hash(tmp_path / "left alone")
    rows, scores = metrics_of(tmp_path / "asked"), ("val/bleu", "val/chrf")
    assert [{key: value for key, value in row.items() if key not in scores} for row in rows] == metrics_of(
        tmp_path / "left alone"
    )
    assert any("val/bleu" in row for row in rows)


def test_a_resumed_run_asks_the_same(copies: Path, tmp_path: Path):
    few = ("train.max_steps=8", "train.eval_every=2", "train.save_every=2", "train.answers_every_eval=2")
    run_training(config(tmp_path / "whole", copies, *few, seq2seq=False))
    polls = chain([None] * 7, repeat(15))
    stopped = run_training(config(tmp_path / "cut", copies, *few, seq2seq=False), stop=lambda: next(polls))
    assert stopped.status == "interrupted"
    run_training(config(tmp_path / "cut", copies, *few, seq2seq=False))
    assert weights_hash(tmp_path / "cut") == weights_hash(tmp_path / "whole")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


def test_an_answer_stops_where_a_text_ends_and_no_prompt_is_longer_than_in_training(copies: Path, tmp_path: Path):
    settings = config(tmp_path / "run", copies, "data.seq_len=4", seq2seq=False)
    store = open_store(settings.data, EXPORT)
    exam = Exam(store, settings.data, "seq2seq", "val", None, 5)  # type: ignore[arg-type]
    assert len(exam.questions) == 5
    for question in exam.questions:
        assert len(question.ids) <= 4
        assert not set(question.wanted) & set(store.tokenizer.special_tokens.values())
        assert store.tokenizer.decode(question.wanted).split()[0] in ("cat", "dog", "owl", "bee", "hen", "fox")


def test_without_answers_or_the_library_it_is_said_before_training(copies: Path, tmp_path: Path, monkeypatch):
    with pytest.raises(ValueError, match=r"no answers to compare with \(task causal, documents of kind text\)"):
        run_training(tiny_config(tmp_path / "story", ASKED))
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match="needs sacrebleu: pip install sacrebleu"):
        run_training(config(tmp_path / "run", copies, seq2seq=False))
    assert not RunFolder(tmp_path / "run").metrics()
    assert torch.is_grad_enabled()
