"""Mixed precision: the forward and backward pass in 16 bits, weights and optimizer in 32."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A function that makes the context for one forward pass (nothing for fp32)."""
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, DTYPES[precision])


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16 (Micikevicius et al. 2018): small gradients would vanish. Passes others through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


class WorkingCopy:
    """A bf16 copy of a model that computes while the model itself keeps weights and gradients in fp32.

    Faster than autocast, which converts weights and activations over and over. Only for a model that says which of its
    modules have to stay in fp32 (`full_precision`): an embedding's gradient is a sum over every place a token stands
    at, which bf16 would round away; those modules are shared with the model, not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)
        for name in model.full_precision:  # type: ignore[union-attr]
            self.model.set_submodule(name, model.get_submodule(name))
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (the copy's weight, the model's)
        done: dict[int, nn.Parameter] = {}
        for name, module in self.model.named_modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                original = model.get_submodule(name).get_parameter(key)
                if parameter is original:  # of a module that is shared
                    continue
                if id(original) not in done:
                    done[id(original)] = nn.Parameter(
                        original.detach().to(torch.bfloat16), requires_grad=original.requires_grad
                    )
                    self._pairs.append((done[id(original)], original))
                setattr(module, key, done[id(original)])
        self._trained = [(mine, whole) for mine, whole in self._pairs if whole.requires_grad]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights: call before each forward pass that follows a change of them."""
        torch._foreach_copy_([mine for mine, _ in self._pairs], [whole for _, whole in self._pairs])

    @torch.no_grad()
    def collect(self) -> None:
        """Add the copy's gradients to the model's, in fp32, and drop them: call after each backward pass."""
        for mine, whole in self._trained:
            if mine.grad is None:
                continue
            if whole.grad is None:
                whole.grad = mine.grad.float()
            else:
                whole.grad += mine.grad
            mine.grad = None
