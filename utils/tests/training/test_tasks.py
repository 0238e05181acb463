"""A run trains what the model is made for, and says so where it cannot."""

from itertools import islice, permutations

import pytest
import torch
from torch import nn

from utils.config.schema import DataConfig
from utils.data.storing.token_store import open_store
from utils.training.choices import choose_task


class Model(nn.Module):
    def __init__(self, task: str, rows: int) -> None:
        super().__init__()
        self.task = task
        self.shape = type("Limits", (), {"vocab_size": rows, "block_size": 8})


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of ten different characters."""
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "book.txt").write_text("".join("".join(p) + "\n" for p in islice(permutations("abcdefg h"), 99)))
    store = open_store(data(path=str(tmp_path / "book.txt")))
    assert store.tokenizer.vocab_size == 11  # and the one for what it never saw
    return store


def data(task: str = "auto", path: str = "book.txt") -> DataConfig:
    lines = {"source": "text", "path": path, "document": "line", "duplicates": "ignore"}
    return DataConfig(**lines, tokenizer="char", seq_len=8, task=task)


@pytest.mark.parametrize("task", ["causal", "masked", "seq2seq"])
def test_auto_is_what_the_model_is_made_for(store, task: str):
    assert choose_task(data(), Model(task, 20), store) == task
    assert choose_task(data(task), Model(task, 20), store) == task


def test_a_model_that_says_nothing_is_causal(store):
    model = nn.Linear(1, 1)
    model.shape = type("Limits", (), {"vocab_size": 11, "block_size": 8})
    assert choose_task(data(), model, store) == "causal"


def test_another_task_is_refused(store):
    with pytest.raises(ValueError, match=r"data.task=causal does not fit this model, which is made for masked"):
        choose_task(data("causal"), Model("masked", 20), store)


def test_a_classifier_needs_labels(store):
    with pytest.raises(ValueError, match=r"this model is a classifier, and these documents have no labels"):
        choose_task(data(), Model("classification", 20), store)


def test_a_mask_needs_a_row(store):
    with pytest.raises(ValueError, match=r"needs 12 tokens, .* has 11: lower data.vocab_size to 10"):
        choose_task(data(), Model("masked", 11), store)


def test_an_auxiliary_loss_is_trained_and_not_reported(tmp_path):
    from utils.tests.training.test_trainer import tiny_gpt, trainer

    class WithAux(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.inner, self.weight, self.extra = tiny_gpt(60), weight, nn.Parameter(torch.ones(()))

        def forward(self, ids):
            self.aux_loss = self.weight * self.extra
            return self.inner(ids)

    import numpy as np

    ids = np.arange(2000, dtype=np.uint16) % 60
    steps = {weight: trainer(WithAux(weight), ids, tmp_path / str(weight), grad_clip=0.0) for weight in (0.0, 3.0)}
    losses = {weight: run.train_step(5)[0] for weight, run in steps.items()}
    assert losses[0.0] == losses[3.0]  # the loss reported is that of the tokens alone
    assert steps[3.0].model.extra < steps[0.0].model.extra  # and yet it was made smaller
