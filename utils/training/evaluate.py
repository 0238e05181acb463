"""How good is a model on the validation text? Disturbs nothing: no random draw, no gradient, same mode after."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from utils.data.tasks import TaskBatches
from utils.training.loss import count_correct, token_loss


@dataclass(frozen=True)
class Evaluation:
    """Means over every counted token."""

    loss: float  # nats per token
    accuracy: float  # share of tokens that were the model's first guess
    tokens: int

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """The loss in bits per UTF-8 byte, comparable between tokenizers."""
        return self.loss / math.log(2) / bytes_per_token


def evaluate(
    model: nn.Module,
    batches: TaskBatches,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    stop: Callable[[], object] = lambda: None,
) -> Evaluation | None:
    """Loss and accuracy over all of `batches`; None when `stop()` became true on the way."""
    training = model.training
    model.eval()
    loss, right, tokens = 0.0, 0, 0
    try:
        for i in range(len(batches)):
            if stop():
                return None
            inputs, labels = batches.batch(i)
            labels = labels.to(device)
            with torch.inference_mode(), autocast():
                logits = model(*(ids.to(device) for ids in inputs))
                loss += token_loss(logits, labels)[0].item()
                hits, counted = count_correct(logits, labels)
            right, tokens = right + hits, tokens + counted
    finally:
        model.train(training)
    return Evaluation(loss / tokens, right / tokens, tokens)
