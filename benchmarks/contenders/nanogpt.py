"""nanoGPT: the model of a checkout named by path, trained as its train.py does.

The loop below does what that script does between two evaluations, in the same order. Its compiled form is torch.compile
with no options, as there.
"""

import sys
from contextlib import nullcontext
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from .job import Job, Outcome, count

CLIP, RATE, DECAY, BETAS = 1.0, 1e-3, 0.1, (0.9, 0.99)  # of its config/train_shakespeare_char.py


def load(checkout: Path | None) -> ModuleType:
    """Its model.py. Raises FileNotFoundError where there is none."""
    if checkout is None or not (checkout / "model.py").is_file():
        raise FileNotFoundError(f"no model.py in --nanogpt {checkout}: git clone https://github.com/karpathy/nanoGPT")
    loader = SourceFileLoader("nanogpt_model", str(checkout / "model.py"))
    module = ModuleType(loader.name)
    sys.modules[loader.name] = module  # a dataclass looks its own module up
    loader.exec_module(module)
    return module


def run(job: Job) -> Outcome:
    """Train until the watch has seen enough."""
    shape, cuda = job.shape, job.device == "cuda"
    published = load(job.nanogpt)
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    config = published.GPTConfig(
        block_size=shape.block_size,
        vocab_size=shape.vocab_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        dropout=0.0,
        bias=True,
    )
    model = published.GPT(config).to(job.device)
    parameters = count(model)
    # On a CPU it computes in fp32 whatever its dtype says; on a GPU in bf16 where there is bf16.
    bf16 = cuda and torch.cuda.is_bf16_supported()
    precision = "bf16" if bf16 else "fp16" if cuda else "fp32"
    autocast = torch.autocast("cuda", torch.bfloat16 if bf16 else torch.float16) if cuda else nullcontext()
    scaler = torch.amp.GradScaler(job.device, enabled=precision == "fp16")
    optimizer = model.configure_optimizers(DECAY, RATE, BETAS, job.device)
    if job.entry.compile == "on":
        model = torch.compile(model)

    def batch() -> tuple[Tensor, Tensor]:
        ids = np.memmap(job.ids, np.uint16, "r")  # opened anew for every batch, as there
        T = shape.block_size
        starts = torch.randint(len(ids) - T, (shape.batch_size,))
        x = torch.stack([torch.from_numpy(ids[i : i + T].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(ids[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
        if cuda:
            x, y = (part.pin_memory().to("cuda", non_blocking=True) for part in (x, y))
        return x, y

    model.train()
    job.watch.start()
    x, y = batch()
    while True:
        with autocast:
            _, loss = model(x, y)
        x, y = batch()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if job.watch.tick():
            note = "exact GELU, the others' is the tanh form"
            return Outcome(precision, parameters, note, compiled=job.entry.compile == "on")
