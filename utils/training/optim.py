"""Which parameter is moved by what: AdamW for all, or Muon for the matrices of the blocks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from utils.config.schema import TrainConfig
from utils.training.muon import Muon, Parts

# How libraries name the one layer that makes queries, keys and values, in this order and of equal size.
FUSED = ("qkv", "qkv_proj", "c_attn", "in_proj", "to_qkv", "Wqkv")
OF_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of nn.MultiheadAttention


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """What `train.optimizer` says, over the model's trainable parameters, each tied one once.

    auto: `usual_optimizer`. adamw: Loshchilov and Hutter 2019, in one fused kernel. muon: `Muon` for what
    `block_matrices` finds, AdamW for all else; raises ValueError for a model in which it finds nothing.
    """
    betas = (config.beta1, config.beta2)
    name = usual_optimizer(model) if config.optimizer == "auto" else config.optimizer
    if name == "adamw":
        groups = parameter_groups(model, config.weight_decay)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    matrices = block_matrices(model)
    if not matrices:
        kind = type(getattr(model, "inner", model)).__name__
        raise ValueError(
            f"train.optimizer=muon finds no matrix to train in repeated blocks of {kind}: use train.optimizer=adamw"
        )
    turned = {
        "params": list(matrices),
        "parts": list(matrices.values()),
        "orthogonal": True,
        "weight_decay": config.weight_decay,
    }
    rest = [
        {**group, "params": [p for p in group["params"] if p not in matrices]}
        for group in parameter_groups(model, config.weight_decay)
    ]
    return Muon([turned, *rest], config.learning_rate, momentum=config.muon_momentum, betas=betas)


def usual_optimizer(model: nn.Module) -> str:
    """What train.optimizer=auto means for a model: what it says itself (`optimizer`), else adamw."""
    return getattr(model, "optimizer", "adamw")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; biases and norm gains (one dimension) do not. Tied weights count once."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def block_matrices(model: nn.Module) -> dict[nn.Parameter, Parts | None]:
    """The trainable matrices between the embedding and the output layer, and how each is cut.

    Those are the weights of nn.Linear, of transformers' Conv1D and of nn.MultiheadAttention that lie inside a repeated
    block: a module with modules of its own in an nn.ModuleList, or one of several of the same class in an
    nn.Sequential. A weight that is an embedding's too, or has a single row or column, is none of them: whatever is
    not surely a matrix that maps one hidden state to another stays with AdamW.

    A matrix is cut where its module says so, `fused = {"name of the layer": sizes along the outputs}`, and into three
    where its name says that it makes queries, keys and values and its outputs are three times its inputs.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found: dict[nn.Parameter, Parts | None] = {}
    for block in _blocks(model):
        for module in block.modules():
            for weight, parts in _matrices_of(module):
                if weight.requires_grad and weight.dim() == 2 and min(weight.shape) > 1 and id(weight) not in embedded:
                    found.setdefault(weight, parts)
    return found


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for container in model.modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        children = [child for child in container if any(True for _ in child.children())]
        kinds = [type(child) for child in children]
        yield from (child for child in children if isinstance(container, nn.ModuleList) or kinds.count(type(child)) > 1)


def _matrices_of(module: nn.Module) -> Iterator[tuple[nn.Parameter, Parts | None]]:
    """The matrices of this module's own and of its layers: the module knows which of them are fused."""
    if isinstance(module, nn.MultiheadAttention):
        for name in OF_ATTENTION:
            weight = getattr(module, name)
            if weight is not None:
                yield weight, (0, (weight.shape[1],) * 3) if name == "in_proj_weight" else None
    for name, layer in module.named_children():
        is_conv = type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")  # transformers': weight (inputs, outputs)
        if not (isinstance(layer, nn.Linear) or is_conv):
            continue
        outputs = 1 if is_conv else 0
        weight = layer.weight
        if not isinstance(weight, nn.Parameter):  # worked out of others, as with weight or spectral norm
            continue
        sizes = getattr(module, "fused", {}).get(name)
        if sizes is None and name in FUSED and weight.shape[outputs] == 3 * weight.shape[1 - outputs]:
            sizes = (weight.shape[1 - outputs],) * 3
        yield weight, None if sizes is None else (outputs, tuple(sizes))
