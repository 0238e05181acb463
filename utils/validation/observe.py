"""Looks inside a model while it runs: its layers' outputs and its token embedding. Judges nothing.

B sequences, T tokens, C channels, V = vocabulary. Calls are intercepted with a torch function mode, which sees
`F.embedding` however it was imported, and needs no knowledge of the model's classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from utils.validation.report import Check
from utils.validation.subject import Subject, first_tensor, watching

LONGEST = 128  # tokens; what behaves in a certain way does so within these


def tier2(why: str) -> Callable:
    """Mark a check as one of tier 2, with one sentence on why its answer matters."""

    def mark(check: Callable[[Subject], Check | None]) -> Callable[[Subject], Check | None]:
        @wraps(check)
        def asked(subject: Subject) -> Check | None:
            answer = check(subject)
            return answer and replace(answer, why=why, tier=2)

        asked.why = why  # type: ignore[attr-defined]
        return asked

    return mark


def longest(subject: Subject, most: int = LONGEST) -> int:
    """The longest sequence that works and does not take long, at most `most` tokens."""
    return subject.affordable(most) if subject.length else min(subject.block_size, most)


def evaluate(subject: Subject, ids: Tensor) -> Tensor:
    """Logits as float32 in evaluation mode, with gradients where something asks for them."""
    subject.model.eval()
    subject.reseed()
    # cuDNN keeps nothing for a backward pass of an RNN in evaluation mode; the plain kernels do.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        return subject.run(ids).float()


def stages(subject: Subject) -> list[tuple[str, nn.Module]]:
    """What a sequence passes one after the other: the layers, or the parts of a model that has no stack."""
    layers = subject.layers()
    if layers:
        return layers
    prefix, module = "", subject.model
    while len(children := list(module.named_children())) == 1:  # an adapter around the model, a wrapper around it
        prefix, module = f"{prefix}{children[0][0]}.", children[0][1]
    parts = [(prefix + name, child) for name, child in module.named_children()]
    return [part for part in parts if getattr(part[1], "out_features", 0) != subject.vocab_size]  # logits are no stage


def layer_outputs(subject: Subject, ids: Tensor, modules: list[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """Each module's output (.., C) as float32, in the order of use; what is no float tensor is left out."""
    found: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, out: Any) -> None:
        out = first_tensor(out)
        if out is not None and out.is_floating_point() and out.dim() >= 3:
            found[name] = out.detach().float()

    with watching(modules, see):
        subject.logits(ids)
    return found


@contextmanager
def output_replaced(module: nn.Module, value: Tensor) -> Iterator[None]:
    """Inside, the module's output is `value`; the other items of a tuple stay."""

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        if isinstance(out, (tuple, list)):
            return type(out)([value.to(out[0].dtype), *out[1:]])
        return value.to(out.dtype)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class TokenEmbedding(TorchFunctionMode):
    """Finds the embedding of one sequence `ids` (1, T), and may put another in its place.

    After a forward pass inside it, `table` is the (V, C) table, and `value` (1, T, C) what was looked up; both are
    None where no call of `F.embedding` (or of `nn.Embedding`, which uses it) was given these ids.
    """

    def __init__(self, ids: Tensor, replacement: Tensor | None = None) -> None:
        super().__init__()
        self.ids, self.replacement = ids, replacement
        self.table: Tensor | None = None
        self.value: Tensor | None = None

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is not F.embedding:
            return out
        given = args[0] if args else kwargs["input"]
        if given.numel() != self.ids.numel() or not torch.equal(given.flatten().to(self.ids), self.ids.flatten()):
            return out
        self.table = args[1] if len(args) > 1 else kwargs["weight"]
        self.value = out.detach().reshape(*self.ids.shape, -1)
        return out if self.replacement is None else self.replacement.reshape(out.shape).to(out.dtype)


def find_embedding(subject: Subject, ids: Tensor) -> TokenEmbedding:
    """One forward pass of `ids` (1, T), and what was seen of its embedding."""
    with TokenEmbedding(ids) as found:
        subject.logits(ids)
    return found


def with_embedding(subject: Subject, ids: Tensor, value: Tensor) -> Tensor:
    """Logits of `ids` (1, T) with `value` (1, T, C) in place of their embedding; gradients reach `value`."""
    with TokenEmbedding(ids, value):
        return evaluate(subject, ids)
