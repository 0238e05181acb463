"""How good is a model on text it has not learned? Disturbs nothing: no random draw, no gradient, same mode after."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from utils.data.batching.tasks import Batch, TaskBatches
from utils.training.loss import count_correct, token_loss


def what_it_takes(model: nn.Module) -> dict[str, Any]:
    """What `build_batches` and `eval_on` have to know of a model: what it can be told of its rows, where it starts."""
    return {
        "packs_documents": getattr(model, "packs_documents", False),
        "supports_attention_mask": getattr(model, "supports_attention_mask", False),
        "start_id": getattr(model, "start_id", None),
        "n_classes": getattr(model, "n_classes", 0),
    }


@dataclass(frozen=True)
class Evaluation:
    """Means over every counted label: a token, or a text's class."""

    loss: float  # nats per label
    accuracy: float  # share of labels that were the model's first guess
    tokens: int  # how many labels

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
    """Loss and accuracy over all of `batches`; None when `stop()` became true on the way.

    Raises ValueError where they hold nothing to predict.
    """
    training = model.training
    model.eval()
    loss, right, tokens = 0.0, 0, 0
    try:
        for i in range(len(batches)):
            if stop():
                return None
            batch = batches.batch(i)
            labels = batch.labels.to(device)
            with torch.inference_mode(), autocast():
                logits = logits_of(model, batch, device)
                loss += token_loss(logits, labels)[0].item()
                hits, counted = count_correct(logits, labels)
            right, tokens = right + hits, tokens + counted
    finally:
        model.train(training)
    if not tokens:
        raise ValueError("there is nothing to predict in the text for evaluation: no token of it counts")
    return Evaluation(loss / tokens, right / tokens, tokens)


def logits_of(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """What the model says to a batch, wherever the batch is: (B, T, V), or (B, K) of classes."""
    inputs = (ids.to(device, non_blocking=True) for ids in batch.inputs)
    extra = {name: value.to(device, non_blocking=True) for name, value in batch.extra.items()}
    return model(*inputs, **extra)


def count_tokens(batch: Batch) -> int:
    """How many tokens a model reads in a batch; what only fills up rows is left out where the batch says so."""
    first, *others = batch.inputs
    real = batch.extra.get("documents", batch.extra.get("attention_mask"))
    return sum(ids.numel() for ids in others) + (first.numel() if real is None else int(real.count_nonzero()))
