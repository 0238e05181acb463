"""Where the logits and the auxiliary losses are in whatever a stranger's `forward` returns; calls nothing.

B sequences, T positions, V = vocabulary.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LOGITS = ("logits", "lm_logits", "prediction_logits", "prediction_scores", "scores", "predictions", "output", "outputs")
AUXILIARY = re.compile(r"(^|_)(aux|auxiliary|(load_)?balanc\w*|router|moe|z)(_\w*)?loss(es)?$|^losses$")


@dataclass(frozen=True)
class Output:
    """Where the logits are in what `forward` returns."""

    kind: str = "tensor"
    """tensor, tuple, dict or object."""
    key: str | int = 0
    """The field or place of the logits."""
    auxiliary: tuple[str | int, ...] = ()
    """The fields or places of auxiliary losses."""

    kept: tuple[tuple[str, str], ...] = ()
    """Auxiliary losses that modules keep as attributes: the module's path, the attribute."""
    layout: str = "BTV"
    """How the logits lie: BTV, BVT, TBV, or NV with N = B * T rows."""

    def read(self, output: Any, model: nn.Module, batch: int) -> tuple[Tensor, Tensor | None]:
        """The logits of `batch` texts, batch first, and the sum of the auxiliary losses (None without any)."""
        fields = _fields(output)
        losses = [loss for key in self.auxiliary for loss in _scalars(fields.get(key))]
        losses += [loss for path, name in self.kept for loss in _scalars(getattr(model.get_submodule(path), name))]
        total = torch.stack([loss.reshape(()).float() for loss in losses]).sum() if losses else None
        logits = output if self.kind == "tensor" else fields[self.key]
        if self.layout == "BVT":
            logits = logits.transpose(1, 2)
        elif self.layout == "TBV":
            logits = logits.transpose(0, 1)
        elif self.layout == "NV":
            logits = logits.view(batch, -1, logits.shape[-1])
        return logits, total


def output_of(model: nn.Module, output: Any, sizes: set[int], width: int) -> Output | None:
    """Find the logits in what `forward` returned: by name, or in a tuple by their last axis, never by place alone.

    `sizes` are the vocabulary's possible sizes and `width` the embedding's. None where nothing returned is a score.
    """
    if isinstance(output, Tensor):
        return Output() if output.dim() and output.is_floating_point() else None
    fields = _fields(output)
    kind = "dict" if isinstance(output, Mapping) else "object"
    names: dict[str | int, str] = {key: key for key in fields if isinstance(key, str)}
    if isinstance(output, tuple | list):
        kind = "tuple"
        names = dict(enumerate(getattr(output, "_fields", None) or _returned_names(model, len(output))))
    scores = [key for key, value in fields.items() if isinstance(value, Tensor) and value.is_floating_point()]
    scores = [key for key in scores if fields[key].dim() >= 2]
    fitting = [key for key in scores if fields[key].shape[-1] in sizes]
    by_name = [key for name in LOGITS for key in scores if names.get(key) == name]
    if kind == "tuple" and fitting:  # a name in somebody's code may say `output` of a hidden state
        by_name = [key for key in by_name if key in fitting]
    else:
        by_name.sort(key=lambda key: key not in fitting)
    # A hidden state is kept as the last choice: the finding should name what was returned.
    found = next(iter([*by_name, *fitting, *(k for k in scores if fields[k].shape[-1] != width), *scores]), None)
    if found is None:
        return None
    auxiliary = tuple(key for key, name in names.items() if AUXILIARY.search(name) and _scalars(fields[key]))
    return Output(kind, found, auxiliary)


def kept_losses(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(module, attribute) of the losses that a forward pass with gradients left there.

    The whole model's where it keeps one, else those of its parts.
    """
    for path, module in model.named_modules():
        own = [name for name, value in vars(module).items()
               if AUXILIARY.search(name) and any(loss.requires_grad for loss in _scalars(value))]  # fmt: skip
        yield from ((path, name) for name in own)
        if own and not path:
            return


def nameless_losses(output: Any, known: Output) -> list[Any]:
    """The fields or places of numbers with a gradient, which nothing calls a loss."""
    fields = {} if isinstance(output, Tensor) else _fields(output)
    numbers = {key: value for key, value in fields.items() if isinstance(value, Tensor) and value.dim() == 0}
    return [key for key, value in numbers.items() if value.requires_grad and key not in (*known.auxiliary, "loss")]


def _fields(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    return dict(getattr(output, "__dict__", {}))


def _scalars(value: Any) -> list[Tensor]:
    """An auxiliary loss may be one number, or one per layer."""
    if isinstance(value, Tensor):
        return [value] if value.numel() == 1 else []
    value = list(value.values()) if isinstance(value, dict) else value
    return [loss for item in value for loss in _scalars(item)] if isinstance(value, tuple | list) else []


def _returned_names(model: nn.Module, length: int) -> list[str]:
    """What `forward` calls the parts of the tuple it returns; empty strings where its returns disagree."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(model.forward)))
    except (OSError, TypeError, SyntaxError):  # no source to read
        return [""] * length
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == length:
            found.append([getattr(part, "id", getattr(part, "attr", "")) for part in node.value.elts])
    return found[0] if found and all(names == found[0] for names in found) else [""] * length
