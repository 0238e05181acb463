"""A running average of the weights, which is often better than the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.models.folder import unwrap


class WeightAverage:
    """The exponential moving average of a model's trained weights (Polyak and Juditsky 1992, in its running form).

    Kept in fp32 beside them, on their device: one more copy of the model. Weights that are not trained and buffers
    are the model's own. With a decay of 0 it holds nothing and changes nothing. Polyak and Juditsky, "Acceleration of
    Stochastic Approximation by Averaging", SIAM J. Control Optim. 30(4), https://doi.org/10.1137/0330046.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        trained = {name: p for name, p in unwrap(model).named_parameters() if p.requires_grad} if decay else {}
        self._names, self._weights = list(trained), list[Tensor](trained.values())
        self._average = [weight.detach().float().clone() for weight in self._weights]

    @property
    def is_on(self) -> bool:
        """Whether there is an average at all."""
        return bool(self._weights)

    @torch.no_grad()
    def update(self, step: int, moved: Tensor) -> None:
        """Take in the weights after optimizer step `step` (from 0), unless that step left them as they were.

        `moved`, a scalar on the weights' device, says whether it did not; nobody waits for a GPU to know it.
        """
        if not self.is_on:
            return
        share = 1.0 - average_decay(step, self.decay)
        if moved.device.type == "cpu":
            if moved:
                torch._foreach_lerp_(self._average, self._weights, share)
        else:
            torch._foreach_lerp_(self._average, self._weights, [moved.float() * share] * len(self._weights))  # type: ignore[list-item]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this the model's weights are the average; nothing is copied. Not for a training step."""
        kept = [weight.data for weight in self._weights]
        try:
            for weight, average in zip(self._weights, self._average, strict=True):
                weight.data = average
            yield
        finally:
            for weight, data in zip(self._weights, kept, strict=True):
                weight.data = data

    def weights(self) -> dict[str, Tensor]:
        """The weights that training goes on from, by name, on the CPU."""
        return {name: w.detach().cpu().contiguous() for name, w in zip(self._names, self._weights, strict=True)}

    @torch.no_grad()
    def take_over(self) -> None:
        """The model's weights of this moment are the average: after they were loaded, or at the start."""
        if self.is_on:
            torch._foreach_copy_(self._average, self._weights)


def average_decay(step: int, decay: float) -> float:
    """The decay at optimizer step `step` (from 0): it rises, so that the first weights, drawn by lot, are forgotten."""
    return min(decay, (1 + step) / (10 + step))
