"""What a token costs to learn, in floating-point operations; knows no clock."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from utils.data.batching.tasks import Batch


def flops_per_token(model: nn.Module, seq_len: int, example: Batch | None = None) -> int:
    """Operations of one token's forward and backward pass in a text of `seq_len` tokens.

    A model that says it itself (`flops_per_token`, as bdh does) is believed. gpt and llama: 6 N + 12 L T C, N the
    weights but for tables that are only looked up in (one that is the output layer too counts once), L layers, T =
    seq_len, C channels (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B): all T x T scores count,
    those that the causal mask removes too. Others: three times what torch counts in a forward pass of `example`, or 6 N
    without one, or where nothing can be counted. The work of activation checkpointing never counts: it teaches nothing.
    """
    own = getattr(model, "flops_per_token", None)
    if callable(own):
        return int(own())
    shape = getattr(model, "shape", None)
    if shape is not None and hasattr(model, "hidden"):
        return 6 * _weights_in_products(model) + 12 * shape.n_layer * seq_len * shape.n_embd
    counted = 0 if example is None else _counted(model, example)
    return counted or 6 * _weights_in_products(model)


def _weights_in_products(model: nn.Module) -> int:
    """Numbers in the model's weights, each once, without the tables that only an embedding uses."""
    used: dict[int, int] = {}
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            used |= {id(p): p.numel() for p in module.parameters(recurse=False)}
    return sum(used.values())


def _counted(model: nn.Module, example: Batch) -> int:
    """Three times the forward pass per token: each product has two in the backward pass. 0 where it does not count."""
    device = next(iter(model.parameters())).device
    tokens = sum(ids.numel() for ids in example.inputs)
    buffers, training = [(b, b.clone()) for b in model.buffers()], model.training
    counter, gpus = FlopCounterMode(display=False), [device] if device.type == "cuda" else []
    whole_layers = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's own encoder as one operation, which nobody can count
    model.eval()
    try:
        # Attention as plain products, which the counter knows on every device.
        with torch.random.fork_rng(gpus), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            extra = {name: value.to(device) for name, value in example.extra.items()}
            model(*(ids.to(device) for ids in example.inputs), **extra)
    except Exception:  # it is somebody else's code under a mode it was not written for; training itself will tell
        return 0
    finally:
        torch.backends.mha.set_fastpath_enabled(whole_layers)
        model.train(training)
        with torch.no_grad():
            for buffer, before in buffers:  # some models count their calls
                buffer.copy_(before)
    return 3 * counter.get_total_flops() // max(1, tokens)
