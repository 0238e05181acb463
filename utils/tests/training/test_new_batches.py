"""The loop on what is no block of text: packed documents, padding masks, classes, answers that are missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils.config.schema import ModelShape, TrainConfig
from utils.data.batching.tasks import Batch
from utils.models.registry import build_model
from utils.runs.folder import RunFolder
from utils.runs.recorder import Recorder
from utils.tests.tiny import tiny_config
from utils.training.evaluate import count_tokens, evaluate, logits_of
from utils.training.loss import IGNORE
from utils.training.trainer import Trainer

CPU = torch.device("cpu")
V = 20


class Given:
    """Batches written down one by one, again and again."""

    def __init__(self, *batches: Batch, examples_per_epoch: int = 100) -> None:
        self.batches, self.examples_per_epoch = batches, examples_per_epoch
        self.tokens_per_batch, self.batch_size = batches[0].inputs[0].numel(), len(batches[0].labels)

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, k: int) -> Batch:
        return self.batches[k % len(self.batches)]

    def examples(self, numbers: np.ndarray) -> Batch:
        """The rows with these numbers, counted through all batches."""
        rows = [(self.batch(int(n) // self.batch_size), int(n) % self.batch_size) for n in numbers]
        return Batch(
            tuple(torch.stack([batch.inputs[i][row] for batch, row in rows]) for i in range(len(rows[0][0].inputs))),
            torch.stack([batch.labels[row] for batch, row in rows]),
            {name: torch.stack([batch.extra[name][row] for batch, row in rows]) for name in rows[0][0].extra},
        )


def packed(seed: int = 0) -> tuple[Batch, list[tuple[Tensor, Tensor]]]:
    """Two rows of documents with padding; and each document's ids and labels by itself."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (2, 13), generator=generator)
    documents = torch.tensor([[1] * 4 + [2] * 5 + [0] * 3, [1] * 7 + [2] * 2 + [3] * 3])
    labels = ids[:, 1:].masked_fill(documents == 0, IGNORE)
    alone = [(ids[b, :-1][documents[b] == d][None], labels[b][documents[b] == d][None])
             for b, d in ((0, 1), (0, 2), (1, 1), (1, 2), (1, 3))]  # fmt: skip
    return Batch((ids[:, :-1],), labels, {"documents": documents}), alone


def trainer(model: nn.Module, train: Given, tmp_path: Path, val: Given | None = None, **settings) -> Trainer:
    plain = {
        "max_steps": 3,
        "batch_size": train.batch_size,
        "warmup_steps": 0,
        "eval_every": 0,
        "log_every": 1,
        "save_every": 0,
    }
    config = TrainConfig(**{**plain, **settings})
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(tmp_path / "run"))
    return Trainer(model, config, train, val or train, Recorder(run), CPU, "fp32")  # type: ignore[arg-type]


def small(kind: str = "llama") -> nn.Module:
    torch.manual_seed(0)
    return build_model(kind, ModelShape(n_layer=1, n_head=2, n_embd=16, n_hidden=32, block_size=12, vocab_size=V))


@pytest.mark.parametrize("kind", ["gpt", "llama", "bdh"])
def test_a_step_on_packed_documents_is_a_step_on_each_alone(kind: str, tmp_path: Path):
    batch, alone = packed()
    model, oracle = small(kind), small(kind)
    loss, norm, _, _, tokens = trainer(model, Given(batch), tmp_path, grad_clip=0).train_step(0)
    count = sum(int((labels != IGNORE).sum()) for _, labels in alone)
    expected = sum(nn.functional.cross_entropy(oracle(ids)[0], labels[0], reduction="sum") for ids, labels in alone)
    (expected / count).backward()
    assert count == tokens == 21
    assert loss.item() == pytest.approx((expected / count).item(), rel=1e-5)
    assert norm.item() == pytest.approx(nn.utils.get_total_norm([p.grad for p in oracle.parameters()]).item(), rel=1e-4)


def test_what_fills_up_rows_is_not_counted_as_read(tmp_path: Path):
    batch, _ = packed()
    run = trainer(small(), Given(batch, examples_per_epoch=8), tmp_path, grad_accum_steps=2)
    run.fit()
    rows = [row for row in RunFolder(tmp_path / "run").metrics() if row["kind"] == "train"]
    assert [row["tokens"] for row in rows] == [42, 84, 126]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert run.progress.tokens == 126  # saved with every checkpoint, so that a resumed run counts on
    assert RunFolder(tmp_path / "run").state()["epoch"] == 3 * 4 / 8


def test_tokens_of_every_kind_of_batch():
    ids, nothing = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2)
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    assert count_tokens(Batch((ids,), nothing, {})) == 12
    assert count_tokens(Batch((ids,), nothing, {"attention_mask": mask})) == 8
    assert count_tokens(Batch((ids, ids[:, :4]), nothing, {"attention_mask": mask})) == 16
    assert count_tokens(Batch((ids,), nothing, {"documents": mask * 3})) == 8


@pytest.mark.parametrize(("epochs", "steps"), [(1, 25), (3, 75), (0.01, 1), (2.5, 63)])
def test_epochs_are_counted_in_examples(epochs: float, steps: int, tmp_path: Path):
    batch, _ = packed()
    assert trainer(small(), Given(batch), tmp_path, max_steps=0, epochs=epochs, grad_accum_steps=2).total_steps == steps


class Classes(nn.Module):
    """Says which of three classes a text is of, from the tokens its mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.table(input_ids) * attention_mask[..., None]).sum(1)  # (B, 3)


def test_a_classifier_learns_and_is_measured_per_text(tmp_path: Path):
    ids = torch.arange(V).repeat_interleave(3).view(10, 6)
    batch = Batch((ids,), torch.arange(10) % 3, {"attention_mask": (ids % 5 > 0).long()})
    model = Classes()
    run = trainer(model, Given(batch), tmp_path, max_steps=40, learning_rate=0.3, min_lr=0.1)
    before = evaluate(model, run.val, CPU, run.stepper.autocast)
    result = run.fit()
    after = evaluate(model, run.val, CPU, run.stepper.autocast)
    assert before.tokens == after.tokens == 10
    assert result.progress.val_loss == after.loss < 0.2 < before.loss
    assert after.accuracy == 1.0
    row = next(row for row in RunFolder(tmp_path / "run").metrics() if row["kind"] == "val")
    assert row["val/bits_per_byte"] is None


def test_a_step_with_nothing_to_learn_changes_nothing_but_goes_on(tmp_path: Path):
    batch, _ = packed()
    silent = batch._replace(labels=torch.full_like(batch.labels, IGNORE))
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    run = trainer(model, Given(silent, batch), tmp_path, Given(batch), weight_decay=0.0)
    loss, norm, *_ = run.train_step(0)
    assert (loss, norm) == (0.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert run.fit().status == "completed"
    # Half of a step without answers weighs nothing: the same as the other half alone.
    both, one = (trainer(small(), Given(*given), tmp_path / str(len(given)), grad_accum_steps=len(given))
                 for given in ((silent, batch), (batch,)))  # fmt: skip
    got, want = both.train_step(0), one.train_step(0)
    assert (got.loss.item(), got.norm.item()) == pytest.approx((want.loss.item(), want.norm.item()), rel=1e-6)


def test_an_evaluation_without_a_question_says_so(tmp_path: Path):
    batch, _ = packed()
    silent = batch._replace(labels=torch.full_like(batch.labels, IGNORE))
    with pytest.raises(ValueError, match="nothing to predict in the text for evaluation"):
        evaluate(small(), Given(silent), CPU, trainer(small(), Given(batch), tmp_path).stepper.autocast)


def test_what_a_batch_brings_along_reaches_the_model():
    batch, _ = packed()
    model = small().eval()
    with torch.no_grad():
        assert torch.equal(logits_of(model, batch, CPU), model(batch.inputs[0], documents=batch.extra["documents"]))
        assert not torch.equal(logits_of(model, batch, CPU), model(batch.inputs[0]))
