"""Built-in models of the same size as another model; knows nothing of training."""

import torch

from utils.config.schema import ModelShape
from utils.models.registry import build_model
from utils.validation.short_training import count_parameters
from utils.validation.subject import Subject

KINDS = ("llama", "gpt")
CLOSE = 0.1  # of the parameters
WIDTH, HEAD = 16, 32  # the width is a multiple of the first; a head has about so many channels


def equal_shape(kind: str, parameters: int, vocab_size: int, block_size: int, layers: int) -> ModelShape | None:
    """The shape of a built-in model with about `parameters` numbers, within 10 %; None where there is none.

    As many layers as asked for, or fewer when even the narrowest such model is too large. The widest usual one
    that is not larger is taken, and its feed-forward layers are widened by what is missing.
    """
    for n_layer in range(max(1, layers), 0, -1):
        width = _widest(kind, parameters, vocab_size, block_size, n_layer)
        if not width:
            continue
        shape = _shape(width, n_layer, vocab_size, block_size)
        hidden = _hidden(kind, shape)
        one = _size(kind, shape.model_copy(update={"n_hidden": hidden + 1}))
        each = one - _size(kind, shape.model_copy(update={"n_hidden": hidden}))
        missing = parameters - _size(kind, shape)
        found = shape.model_copy(update={"n_hidden": hidden + round(missing / each)})
        if abs(_size(kind, found) / parameters - 1) <= CLOSE:
            return found
    return None


def equal_shapes(subject: Subject) -> dict[str, ModelShape]:
    """The shape of each kind of built-in model that can be as large as the subject, by kind."""
    size, layers = count_parameters(subject.model), len(subject.layers()) or 2
    shapes = {kind: equal_shape(kind, size, subject.vocab_size, subject.block_size, layers) for kind in KINDS}
    return {kind: shape for kind, shape in shapes.items() if shape}


def _widest(kind: str, parameters: int, vocab_size: int, block_size: int, n_layer: int) -> int:
    low, high = 0, 1  # in multiples of WIDTH: low fits, high does not
    while _size(kind, _shape(high * WIDTH, n_layer, vocab_size, block_size)) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = _size(kind, _shape(middle * WIDTH, n_layer, vocab_size, block_size)) <= parameters
        low, high = (middle, high) if fits else (low, middle)
    return low * WIDTH


def _shape(width: int, n_layer: int, vocab_size: int, block_size: int) -> ModelShape:
    wanted = max(1, width // HEAD)
    heads = next(n for n in range(wanted, 0, -1) if width % (2 * n) == 0)
    return ModelShape(n_layer=n_layer, n_head=heads, n_embd=width, block_size=block_size, vocab_size=vocab_size)


def _hidden(kind: str, shape: ModelShape) -> int:
    """Width of the feed-forward layers that the kind gives such a shape by itself."""
    with torch.device("meta"):
        block = build_model(kind, shape).blocks[0]
    return int(block.mlp.up.out_features)


def _size(kind: str, shape: ModelShape) -> int:
    with torch.device("meta"):  # shapes without numbers: costs no memory
        return count_parameters(build_model(kind, shape))
