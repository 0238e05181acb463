"""The loop by itself: one step is exactly what the textbook says, and physics holds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape, TrainConfig
from utils.data.batching.batches import EvalBatches, TrainBatches
from utils.data.batching.tasks import TaskBatches
from utils.data.reading.stories import story_nats, write_stories
from utils.data.tokenizing.tokenizer import build_tokenizer
from utils.models.registry import build_model
from utils.runs.folder import RunFolder
from utils.runs.recorder import Recorder
from utils.tests.tiny import tiny_config
from utils.training.trainer import Trainer

CPU = torch.device("cpu")


def trainer(
    model: nn.Module, ids, tmp_path: Path, val=None, seq_len: int = 32, floor=None, precision="fp32", **settings
) -> Trainer:
    config = TrainConfig(**{"max_steps": 20, "batch_size": 8, "warmup_steps": 2, "eval_every": 0, **settings})
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(tmp_path / "run"))
    val = ids[:1000] if val is None else val
    return Trainer(
        model, config, TaskBatches(TrainBatches(ids, seq_len, config.batch_size, config.seed)),
        TaskBatches(EvalBatches(val, seq_len, config.batch_size, config.eval_batches)), Recorder(run), CPU, precision,
        floor=floor,
    )  # fmt: skip


def tiny_gpt(vocab_size: int, block_size: int = 32, **shape) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, **shape}
    return build_model("gpt", ModelShape(vocab_size=vocab_size, block_size=block_size, **sizes))


@pytest.fixture(scope="module")
def stories():
    """Training ids, validation ids, vocabulary size and entropy floor of a small corpus."""
    text, val = write_stories(120_000), write_stories(4_000, start=10**6)
    tokenizer = build_tokenizer("char", text)
    import numpy as np

    ids = [np.asarray(tokenizer.encode(part), dtype=np.uint16) for part in (text, val)]
    return *ids, tokenizer.vocab_size, story_nats(val) / (len(ids[1]) - 1)


def test_one_step_equals_plain_torch(tmp_path: Path, stories):
    ids, _, vocab_size, _ = stories
    model, oracle = tiny_gpt(vocab_size), tiny_gpt(vocab_size)
    run = trainer(model, ids, tmp_path, optimizer="adamw", learning_rate=0.01, min_lr=0.01, schedule="constant",
                  warmup_steps=0, weight_decay=0.1, grad_clip=0.5)  # fmt: skip
    loss, norm, finite, rate, tokens = run.train_step(0)

    optimizer = torch.optim.AdamW(
        [{"params": [p for p in oracle.parameters() if p.dim() > 1], "weight_decay": 0.1},
         {"params": [p for p in oracle.parameters() if p.dim() == 1], "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.99), foreach=False,
    )  # fmt: skip
    (input_ids,), labels, _ = run.train.batch(0)
    expected = nn.functional.cross_entropy(oracle(input_ids).flatten(0, 1), labels.flatten())
    expected.backward()
    before_clip = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
    optimizer.step()
    assert (bool(finite), rate, tokens) == (True, 0.01, 8 * 32)
    assert loss.item() == pytest.approx(expected.item())
    assert norm.item() == pytest.approx(before_clip.item(), rel=1e-5)
    for (name, got), want in zip(model.named_parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(got, want, atol=1e-6), name


class Leaky(nn.Module):
    """A model with the bug that the entropy floor catches: it sees the token it should predict."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.nothing = vocab_size  # the last token of a block has no next one to look at
        self.table = nn.Embedding(vocab_size + 1, vocab_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(nn.functional.pad(input_ids[:, 1:], (0, 1), value=self.nothing))


def test_a_leak_of_the_future_falls_through_the_floor_and_raises_an_alert(tmp_path: Path, stories):
    ids, val, vocab_size, floor = stories
    run = trainer(Leaky(vocab_size), ids, tmp_path, val, 128, floor, max_steps=100, learning_rate=1.0, weight_decay=0)
    result = run.fit()
    assert result.progress.val_loss < floor - 0.02
    alerts = RunFolder(tmp_path / "run").events("alert")
    assert "is below" in alerts[0]["text"]
    assert "Is the attention causal?" in alerts[0]["text"]


def test_an_honest_model_learns_and_stays_above_the_floor(tmp_path: Path, stories):
    ids, val, vocab_size, floor = stories
    run = trainer(tiny_gpt(vocab_size), ids, tmp_path, val, floor=floor, max_steps=300, learning_rate=1e-2)
    result = run.fit()
    assert floor < result.progress.val_loss < 2.9  # a uniform guess is 4.06
    assert not RunFolder(tmp_path / "run").events("alert")


def test_shuffled_labels_teach_no_more_than_how_often_each_letter_comes(tmp_path: Path, stories):
    import numpy as np

    ids, val, vocab_size, _ = stories
    shuffled = np.random.default_rng(0).permutation(ids)
    run = trainer(tiny_gpt(vocab_size), shuffled, tmp_path, val, max_steps=150, learning_rate=1e-2)
    counts = np.bincount(ids, minlength=vocab_size) + 1
    letters = -np.log(counts / counts.sum())[val[1:]].mean()
    assert run.fit().progress.val_loss > letters - 0.05


def test_dropout_is_the_same_however_often_a_step_is_done(tmp_path: Path, stories):
    ids, _, vocab_size, _ = stories
    losses = []
    for _ in range(2):
        run = trainer(tiny_gpt(vocab_size, dropout=0.5), ids, tmp_path)
        torch.rand(len(losses) + 3)  # whatever somebody else draws in between
        losses.append([run.train_step(step).loss.item() for step in (0, 1)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_bf16_trains_close_to_fp32(kind: str, tmp_path: Path, stories):
    ids, _, vocab_size, _ = stories

    def losses(precision: str) -> list[float]:
        torch.manual_seed(0)
        model = build_model(kind, ModelShape(vocab_size=vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=32))
        run = trainer(model, ids, tmp_path, precision=precision, learning_rate=3e-3)
        assert (run.stepper.copy is not None) == (precision == "bf16")
        return [run.train_step(step).loss.item() for step in range(20)]

    full, half = losses("fp32"), losses("bf16")
    assert full != half
    assert full == pytest.approx(half, rel=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_fp16_scales_the_loss_on_a_gpu(tmp_path: Path):
    from utils.training.run import run_training

    result = run_training(tiny_config(tmp_path / "run", "train.device=cuda", "train.precision=fp16"))
    assert result.status == "completed"
