"""When a model's forward pass is compiled into larger kernels, and what happens where that fails."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.runtime.files import cache_dir
from utils.training.memory import is_out_of_memory

Forward = Callable[..., Tensor]
COSTS = 60.0  # seconds that a first compilation takes, of forward and backward pass together
SAVES = {"cpu": 0.1, "cuda": 0.2}  # share of a step's time that compiling saves, at least


def is_worth_it(seconds: float, device: torch.device) -> bool:
    """Whether a run that would take so many seconds uncompiled wins the minute back twice."""
    return seconds * SAVES.get(device.type, 0.0) > 2 * COSTS


class Compiled:
    """A forward pass compiled by torch when it is first called; a plain one, with a word, where that fails."""

    def __init__(self, forward: Forward, warn: Callable[[str], None]) -> None:
        # What is compiled is kept: the next run of the same shape starts in a second or two.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
        self._forward, self._warn = forward, warn
        self._fast: Forward | None = torch.compile(forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call it."""
        if self._fast is None:
            return self._forward(*args, **kwargs)
        try:
            return self._fast(*args, **kwargs)
        except Exception as error:  # a compiler brings any number of them along
            # Where it is the compiler that found no memory, the model may still find enough.
            if is_out_of_memory(error) and not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        result = self._forward(*args, **kwargs)  # raises what was the model's own mistake
        self._fast = None
        self._warn(f"the model could not be compiled ({said[:200]}): it trains without, somewhat slower")
        return result
