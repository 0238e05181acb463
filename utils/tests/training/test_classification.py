"""Labelled rows train a classifier; rows without labels, and more classes than it has outputs, are refused."""

import json
import random
from pathlib import Path

import pytest

from utils.jobs.launch import prepare_inline
from utils.runs.folder import RunFolder
from utils.runtime.files import sha256_file
from utils.tests.tiny import metrics_of, tiny_config
from utils.training.run import run_training

CLASSIFIER = Path(__file__).parents[3] / "tests" / "exports" / "classifier"
WORDS = {"animal": ["cat", "dog", "owl"], "food": ["bread", "plum", "soup"], "place": ["barn", "hill", "pond"]}


def rows_of(path: Path, classes: int = 3, label: str = "kind") -> Path:
    """600 rows whose class a single word gives away."""
    draw, rows = random.Random(1), []
    for i in range(600):
        kind = list(WORDS)[i % 3] if classes <= 3 else f"kind {i % classes}"
        text = f"In year {i} there was {'a ' * draw.randint(1, 4)}{draw.choice(WORDS.get(kind, ['thing']))} of note."
        rows.append({"body": text, label: kind})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(folder: Path, path: Path, *words: str):
    config = tiny_config(
        folder / "run", "model.kind=builder", f"model.ref={CLASSIFIER}",
        f"model.trust_sha256={sha256_file(CLASSIFIER / 'model.py')}", "data.source=jsonl", f"data.path={path}",
        "data.text_field=body", "data.tokenizer=bpe", "data.vocab_size=400", "data.seq_len=32", "data.val_fraction=0.2",
        "train.eval_batches=0", "train.sample_every=0", "train.learning_rate=3e-3", *words,
    )  # fmt: skip
    return run_training(prepare_inline(config))


def test_it_learns_the_classes(tmp_path):
    words = ("data.label_field=kind", "train.max_steps=60", "train.eval_every=60", "train.batch_size=16")
    result = run(tmp_path, rows_of(tmp_path / "rows.jsonl"), *words)
    assert result.status == "completed"
    last = [row for row in metrics_of(tmp_path / "run") if row["kind"] == "val"][-1]
    assert last["val/accuracy"] > 0.9
    assert last["val/bits_per_byte"] is None
    assert RunFolder(tmp_path / "run").read_json("meta")["task"] == "classification"


def test_without_labels_it_lists_the_columns(tmp_path):
    words = r"needs a class for each text: which column .* kind \(text\): say data\.label_field=NAME"
    with pytest.raises(ValueError, match=words):
        run(tmp_path, rows_of(tmp_path / "rows.jsonl"))


def test_more_classes_than_outputs_are_refused_with_both_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"\b5\b.*\b3\b|\b3\b.*\b5\b"):
        run(tmp_path, rows_of(tmp_path / "rows.jsonl", classes=5), "data.label_field=kind")
