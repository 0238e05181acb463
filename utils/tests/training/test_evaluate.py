"""One pass measures everything, whatever the batch, and holds only some of the logits."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from utils.config.schema import ModelShape
from utils.data.batching.batches import EvalBatches
from utils.data.batching.questions import Batch
from utils.data.batching.tasks import TaskBatches
from utils.models.registry import build_model
from utils.training import evaluate as evaluation
from utils.training.evaluate import Evaluation, evaluate
from utils.training.loss import IGNORE

CPU = torch.device("cpu")


def text_batches(tokens: int, vocabulary: int, size: int, seq_len: int = 16) -> TaskBatches:
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens).astype(np.uint16)
    return TaskBatches(EvalBatches(ids, seq_len, size))


def model_of(kind: str = "gpt", vocabulary: int = 65) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(kind, ModelShape(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=vocabulary))
    for p in model.parameters():
        p.data *= 3  # opinions, so that ranks differ
    return model


class Said(nn.Module):
    """Says the logits it was given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logits


class Once:
    def __init__(self, batch: Batch) -> None:
        self.given, self.batch_size = batch, len(batch.labels)

    def __len__(self) -> int:
        return 1

    def batch(self, i: int) -> Batch:
        return self.given


def judged(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    found = evaluate(Said(logits), Once(Batch((labels,), labels, {})), CPU, nullcontext)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["gpt", "llama", "bdh"])
def test_it_is_what_one_would_count_by_hand(kind: str):
    model, batches = model_of(kind), text_batches(200, 65, 3)
    losses, places = [], []
    with torch.no_grad():
        for batch in map(batches.batch, range(len(batches))):
            log_p = model.eval()(*batch.inputs).log_softmax(-1).flatten(0, 1)
            for row, label in zip(log_p, batch.labels.flatten().tolist(), strict=True):
                if label != IGNORE:
                    losses.append(-row[label].item())
                    places.append(row.argsort(descending=True).tolist().index(label))
    found = evaluate(model, batches, CPU, nullcontext)
    assert found.tokens == len(losses) == 199
    assert found.loss == pytest.approx(sum(losses) / 199, rel=1e-6)
    assert found.accuracy == pytest.approx(np.mean([place == 0 for place in places]))
    assert found.top5 == pytest.approx(np.mean([place < 5 for place in places]))
    assert found.accuracy < found.top5 < 1
    assert found.macro_f1 is None
    assert found.metrics(2.0)["val/bits_per_byte"] == pytest.approx(found.loss / math.log(2) / 2)


def test_neither_the_batch_nor_the_chunk_changes_it(monkeypatch):
    model = model_of()
    one = evaluate(model, text_batches(3000, 65, 1), CPU, nullcontext)
    many = evaluate(model, text_batches(3000, 65, 50), CPU, nullcontext)
    monkeypatch.setattr(evaluation, "CHUNK", 65 * 7)
    pieces = evaluate(model, text_batches(3000, 65, 50), CPU, nullcontext)
    for other in (many, pieces):
        assert (other.tokens, other.accuracy, other.top5) == (one.tokens, one.accuracy, one.top5)
        assert other.loss == pytest.approx(one.loss, rel=1e-6)


def test_a_sum_of_many_losses_loses_no_digits():
    logits, labels = torch.zeros(4, 100_000, 10), torch.zeros(4, 100_000, dtype=torch.long)
    assert judged(logits, labels).loss == pytest.approx(math.log(10), rel=1e-7)


def test_of_equal_guesses_the_first_counts():
    found = judged(torch.zeros(1, 20, 20), torch.arange(20)[None])
    assert found.accuracy == 1 / 20
    assert 5 / 20 <= found.top5 <= 6 / 20  # which of them are the others is left to torch


def test_what_is_no_number_is_no_good_guess():
    found = judged(torch.full((1, 20, 20), float("nan")), torch.arange(20)[None])
    assert (found.accuracy, found.top5) == (0.0, 0.0)


def test_classes_are_counted_by_what_they_were_taken_for():
    guesses, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    found = judged(nn.functional.one_hot(guesses, 4).float(), labels)
    assert found.confusion == ((1, 0, 1, 0), (1, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 0))
    # f1 = 2 right / (texts + guesses): 2/4, 2/3, 4/5; the fourth class never occurs
    assert found.macro_f1 == pytest.approx((0.5 + 2 / 3 + 0.8) / 3)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.top5 is None
    assert found.metrics(None)["val/macro_f1"] == found.macro_f1


def test_of_many_classes_there_is_no_table():
    labels, n = torch.arange(60), evaluation.MOST_CLASSES + 10
    found = judged(nn.functional.one_hot(labels // 2 * 2, n).float(), labels)  # every second one is right
    assert found.confusion == ()
    assert found.macro_f1 == pytest.approx((30 * 2 / 3) / 60)  # 2 x 1 / (1 + 2), and 0 for the class never guessed


class Keeps(nn.Module):
    """Makes a table when it is first called, as rotary embeddings often do."""

    table: torch.Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(65, 65)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.arange(65.0).cos()
        return self.embedding(ids) * self.table


def test_what_a_model_keeps_of_an_evaluation_is_of_use_in_training():
    model = Keeps()
    evaluate(model, text_batches(100, 65, 3), CPU, nullcontext)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    assert model.embedding.weight.grad.any()


def test_nothing_to_predict_is_said():
    with pytest.raises(ValueError, match="nothing to predict"):
        judged(torch.zeros(1, 3, 7), torch.full((1, 3), IGNORE))


def test_the_logits_of_a_batch_never_exist(monkeypatch):
    model, batches = model_of(vocabulary=5000), text_batches(641, 5000, 40)
    whole = 640 * 5000 * 4

    def largest() -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            evaluate(model, batches, CPU, nullcontext)
        return max(event.self_cpu_memory_usage for event in found.events())

    assert largest() >= whole
    monkeypatch.setattr(evaluation, "CHUNK", 5000 * 32)
    assert largest() <= whole / 10
