"""nanoGPT: the model of a checkout named by path, trained as its train.py does.

The loop below does what that script does between two evaluations, in the same order. Its compiled form is torch.compile
with no options, as there.
"""

import sys
from contextlib import nullcontext
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .job import Job, Listener, Outcome, count
from .recipe import Recipe
from .shapes import Shape

CLIP = 1.0


def load(checkout: Path | None) -> ModuleType:
    """Its model.py. Raises FileNotFoundError where there is none."""
    if checkout is None or not (checkout / "model.py").is_file():
        raise FileNotFoundError(f"no model.py in --nanogpt {checkout}: git clone https://github.com/karpathy/nanoGPT")
    loader = SourceFileLoader("nanogpt_model", str(checkout / "model.py"))
    module = ModuleType(loader.name)
    sys.modules[loader.name] = module  # a dataclass looks its own module up
    loader.exec_module(module)
    return module


def build(checkout: Path | None, shape: Shape, recipe: Recipe) -> Any:
    """Its GPT of this shape, with new weights."""
    published = load(checkout)
    config = published.GPTConfig(
        block_size=shape.block_size,
        vocab_size=shape.vocab_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        dropout=recipe.dropout,
        bias=recipe.bias,
    )
    return published.GPT(config)


def train(
    model: Any, recipe: Recipe, ids: Path, listener: Listener, device: str = "cpu", compiled: bool = False
) -> str:
    """Train on uint16 ids until the listener has enough or the recipe ends; gives back the number format."""
    cuda, block = device == "cuda", model.config.block_size
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # On a CPU it computes in fp32 whatever its dtype says; on a GPU in bf16 where there is bf16.
    bf16 = cuda and torch.cuda.is_bf16_supported()
    precision = "bf16" if bf16 else "fp16" if cuda else "fp32"
    autocast = torch.autocast("cuda", torch.bfloat16 if bf16 else torch.float16) if cuda else nullcontext()
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    model.to(device).train()
    optimizer = model.configure_optimizers(recipe.weight_decay, recipe.rate, recipe.betas, device)
    forward = torch.compile(model) if compiled else model

    def batch() -> tuple[Tensor, Tensor]:
        text = np.memmap(ids, np.uint16, "r")  # opened anew for every batch, as there
        starts = torch.randint(len(text) - block, (recipe.batch_size,))
        x = torch.stack([torch.from_numpy(text[i : i + block].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(text[i + 1 : i + 1 + block].astype(np.int64)) for i in starts])
        if cuda:
            x, y = (part.pin_memory().to("cuda", non_blocking=True) for part in (x, y))
        return x, y

    listener.started()
    x, y = batch()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        with autocast:
            _, loss = forward(x, y)
        x, y = batch()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if listener.stepped():
            break
    return precision


def run(job: Job) -> Outcome:
    """Train until the watch has seen enough."""
    torch.manual_seed(1337)
    recipe, compiled = Recipe(job.shape.batch_size), job.entry.compile == "on"
    model = build(job.nanogpt, job.shape, recipe)
    precision = train(model, recipe, job.ids, job.watch, job.device, compiled)
    return Outcome(precision, count(model), "exact GELU, the others' is the tanh form", compiled=compiled)
