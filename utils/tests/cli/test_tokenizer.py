"""`tbt tokenizer` as people use it: a process, a folder, a report, and an error that says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.data.reading.stories import write_stories
from utils.data.tokenizing.tokenizer import build_tokenizer, load_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tbt(tmp_path):
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "utils", "tokenizer", *map(str, words)], cwd=tmp_path, capture_output=True,
            text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
        )  # fmt: skip

    return run


def test_train_then_inspect(tbt, tmp_path):
    (tmp_path / "book.txt").write_text(write_stories(30_000).replace("\n", "\n\n"), encoding="utf-8")
    words = ("data.source=text", "data.path=book.txt", "data.tokenizer=wordpiece", "data.vocab_size=400")
    done = tbt("train", *words, "--out", "made/it", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    made = load_tokenizer(tmp_path / "made" / "it")
    assert (told["kind"], told["vocab_size"], told["fingerprint"]) == ("wordpiece", 400, made.fingerprint)
    assert made.vocab_size == 400
    assert 1.5 < told["bytes_per_token"] < 4

    for how in (("--text", "book.txt"), words[:2]):
        seen = tbt("inspect", "made/it", *how, "--json")
        assert seen.returncode == 0, seen.stderr
        report = json.loads(seen.stdout)
        assert report["kind"] == "wordpiece"
        assert report["loss"]["lost"] == 0
        assert report["bytes_per_token"] == pytest.approx(told["bytes_per_token"], rel=0.1)
    shown = tbt("inspect", "made/it/tokenizer.json").stdout
    assert "400 tokens" in shown
    assert "nothing: no text was given" in shown


def test_mistakes_are_one_message_and_exit_code_2(tbt, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    (tmp_path / "bytes.bin").write_bytes(b"ab\xff")
    build_tokenizer("byte", "").save(tmp_path)
    cases = {
        ("inspect", "wordpeace"): "nor owner/name of the Hub. Did you mean wordpiece?",
        ("inspect", "model"): "data.tokenizer=model is for a model that comes with a tokenizer",
        ("inspect", ".", "--text", "none.txt"): "--text none.txt: no such file",
        ("inspect", ".", "--text", "bytes.bin"): "--text bytes.bin is not UTF-8 text: byte 2 is 0xff",
        ("inspect", ".", "--text", "bytes.bin", "data.size=5000"): "both say which text to look at",
        ("train", "--out", "model"): "--out model holds a model, whose weights know its own tokenizer",
        ("train", "--out", "bytes.bin"): "--out bytes.bin is a file: name a folder",
        ("train", "--out", "x", "data.tokenizer=."): "data.tokenizer=. is made already",
    }
    for words, said in cases.items():
        done = tbt(*words)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from utils.cli import tokenizer\n"
        "sys.exit(bool({'torch', 'tokenizers', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
