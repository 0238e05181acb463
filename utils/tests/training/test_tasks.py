"""A run trains what the model is made for, and says so where it cannot."""

import pytest
import torch
from torch import nn

from utils.training.run import choose_task


class Model(nn.Module):
    def __init__(self, task: str, rows: int) -> None:
        super().__init__()
        self.task = task
        self.shape = type("Limits", (), {"vocab_size": rows, "block_size": 8})


@pytest.mark.parametrize("task", ["causal", "masked", "seq2seq"])
def test_auto_is_what_the_model_is_made_for(task: str):
    assert choose_task("auto", Model(task, 20), 10) == task
    assert choose_task(task, Model(task, 20), 10) == task


def test_a_model_that_says_nothing_is_causal():
    model = nn.Linear(1, 1)
    model.shape = type("Limits", (), {"vocab_size": 5, "block_size": 8})
    assert choose_task("auto", model, 5) == "causal"


def test_another_task_is_refused():
    with pytest.raises(ValueError, match=r"data.task=causal does not fit this model, which is made for masked"):
        choose_task("causal", Model("masked", 20), 10)


def test_a_classifier_needs_labels():
    with pytest.raises(ValueError, match="this model is a classifier, and no data.source gives labelled text"):
        choose_task("auto", Model("classification", 20), 10)


def test_a_mask_needs_a_row():
    with pytest.raises(ValueError, match=r"needs 11 tokens, .* has 10: lower data.vocab_size to 9"):
        choose_task("auto", Model("masked", 10), 10)


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
