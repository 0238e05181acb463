"""A model that learned from chats is asked something: at the terminal, for a built-in model and for a boxed one."""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.tests.walls import needs_walls

DATA = ("data.source=jsonl", "data.path=chats.jsonl", "data.packing=documents", "data.seq_len=64", "data.tokenizer=bpe",
        "data.vocab_size=300", "data.val_fraction=0.1")  # fmt: skip
QUICK = ("train.max_steps=2", "train.batch_size=2", "train.warmup_steps=0", "train.threads=1", "train.eval_batches=1",
         "train.sample_every=0", "--run-dir", "run")  # fmt: skip
ASK = ("generate", "run", "--prompt", "What is 2 + 3?", "--max-new-tokens", 8, "--temperature", 0)


def write_chats(folder: Path) -> None:
    chats = [
        [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": f"It is {i + i}."}]
        for i in range(100)
    ]
    lines = "\n".join(json.dumps({"messages": chat}) for chat in chats)
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")


@pytest.mark.parametrize(
    "model",
    [("--preset", "debug", "model.shape.block_size=64"),
     pytest.param(("--model", str(ROOT / "tests" / "exports" / "decoder")), marks=needs_walls)],
    ids=["built in", "boxed"],
)  # fmt: skip
def test_a_question_is_put_into_the_template(tbt, tmp_path: Path, model: tuple[str, ...]):
    write_chats(tmp_path)
    trained = tbt("train", *model, *DATA, *QUICK)
    assert trained.returncode == 0, trained.stderr
    answer = tbt(*ASK, "--chat")
    assert answer.returncode == 0, answer.stderr
    assert "What is 2 + 3?" not in answer.stdout  # what you said, you know
    plain = tbt(*ASK)
    assert plain.stdout.startswith("What is 2 + 3?")
    nothing = tbt("generate", "run", "--chat")
    assert nothing.returncode == 2
    assert "a chat begins with what you say" in nothing.stderr


def test_a_model_that_knows_no_chats_says_so(tbt):
    words = ("model.shape.n_layer=1", "data.size=20000", "data.tokenizer=byte", "data.seq_len=32")
    trained = tbt("train", "--preset", "debug", *words, *QUICK)
    assert trained.returncode == 0, trained.stderr
    refused = tbt(*ASK, "--chat")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "has no chat template" in refused.stderr
    assert "leave --chat" in refused.stderr
