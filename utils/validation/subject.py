"""The model under examination: a private copy that checks may break, and its draws. Judges nothing."""

import copy
import random
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MOVED = 1e-5  # of the logits' scale: two float32 runs of the same shape that differ by more really differ
RATE = {"cpu": 5e10, "cuda": 5e12}  # operations per second that are assumed where a check sizes its batches
NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
STDLIB = sysconfig.get_paths()["stdlib"]


def because(why: str):
    """Mark a check with one sentence on why its answer matters; the runner puts it on every `Check` it gives."""

    def mark(check):
        check.why = why
        return check

    return mark


class Subject:
    """The model under examination: a private copy, its saved state, and the draws made for it.

    Checks may break the copy; `reset` puts it back. A model that cannot be copied is examined in place, which
    is why everything is saved here and `close` gives it back as found.
    """

    def __init__(
        self,
        model: nn.Module,
        vocab_size: int,
        block_size: int,
        causal: bool | None,
        seed: int,
        task: str = "causal",
    ):
        self.original = getattr(model, "_orig_mod", model)  # compiled: every new shape would compile again
        self.vocab_size, self.block_size, self.causal, self.seed = vocab_size, block_size, causal, seed
        self.task = task  # causal, masked, seq2seq or classification
        self.length = 0  # the longest sequence that is known to work; 0 until `check_shapes` says so
        self.classes = 0  # how many classes a classifier tells apart; 0 until `check_shapes` says so
        self.flops = 0.0  # of a forward pass, per token; 0 until `check_shapes` says so
        try:
            self.model = copy.deepcopy(self.original)
        except Exception:  # a stranger's class: a cached activation, a lock or a generator refuses
            self.model = self.original
        in_place = self.model is self.original
        self.grads = [(param, param.grad) for param in self.original.parameters()] if in_place else []
        self.flags = [(param, param.requires_grad) for param in self.model.parameters()]
        self.shelves = [(m, m.training, dict(m._parameters), dict(m._buffers)) for m in self.model.modules()]
        mine, found = _tensors(self.model), _tensors(self.original)
        self.contents = list(zip(mine, [t.clone() for t in found] if in_place else found, strict=True))

        tensor = next(iter(mine), torch.empty(0))
        self.device = tensor.device
        self.generator = torch.Generator().manual_seed(seed)
        # Token 0 and declared padding may be masked out by the model itself, which would look like a fault.
        padding = {m.padding_idx for m in self.model.modules() if isinstance(m, nn.Embedding)} | {0}
        usual = [token for token in range(vocab_size) if token not in padding]
        self.alphabet = torch.tensor(usual if vocab_size > 8 else range(vocab_size))
        floating = [t.dtype for t in mine if t.is_floating_point()]
        eps = max((torch.finfo(dtype).eps for dtype in floating), default=0.0)
        self.half = eps > 1e-6
        self.moved = max(MOVED, 4 * eps)

    def reset(self) -> None:
        """Put every parameter, buffer, mode and flag back, and drop all gradients."""
        for module, training, parameters, buffers in self.shelves:
            module.training = training
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, saved in self.contents:
                if not torch.equal(tensor, saved):  # also true for NaN, which is then copied bit for bit
                    tensor.copy_(saved)
        for param, flag in self.flags:
            param.requires_grad_(flag)
            param.grad = None

    def close(self) -> None:
        """Leave the model as found, gradients included."""
        self.reset()
        for param, grad in self.grads:
            param.grad = grad

    def reseed(self) -> None:
        """Same seed before each run: dropout draws the same mask, so what differs is the model's doing."""
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        random.seed(self.seed)

    def tokens(self, batch: int, length: int) -> torch.Tensor:
        """Random ids (batch, length), int64; all different as long as the vocabulary allows."""
        count = batch * length
        rounds = -(-count // len(self.alphabet))
        decks = [torch.randperm(len(self.alphabet), generator=self.generator) for _ in range(rounds)]
        return self.alphabet[torch.cat(decks)[:count]].view(batch, length).to(self.device)

    def targets(self, batch: int, length: int) -> torch.Tensor:
        """Ids (batch, length) drawn independently: nothing can predict them. A classifier's are classes (batch,)."""
        if self.task == "classification":
            return torch.randint(max(self.classes, 2), (batch,), generator=self.generator).to(self.device)
        draws = torch.randint(len(self.alphabet), (batch, length), generator=self.generator)
        return self.alphabet[draws].to(self.device)

    def other(self, ids: torch.Tensor) -> torch.Tensor:
        """The same shape with another token in every place."""
        place = torch.searchsorted(self.alphabet, ids.cpu().contiguous())
        shift = torch.randint(1, len(self.alphabet), ids.shape, generator=self.generator)
        return self.alphabet[(place + shift) % len(self.alphabet)].to(self.device)

    @property
    def outcomes(self) -> int:
        """Among how many answers a guess is drawn: ids, or classes."""
        return self.classes if self.task == "classification" else len(self.alphabet)

    def affordable(self, length: int, batch: int = 1, seconds: float = 0.25) -> int:
        """The most positions, up to `length`, that a forward pass of `batch` sequences takes in about `seconds`.

        Counted in operations, not by a clock, so that a busy machine measures what an idle one does.
        """
        tokens = seconds * RATE.get(self.device.type, RATE["cpu"]) / max(self.flops, 1.0) / batch
        return max(1, min(length, self.length, max(16, int(tokens))))

    def source(self, batch: int, length: int = 32, seed: int = 0) -> torch.Tensor:
        """What an encoder-decoder reads: ids (batch, S), row i always the same whatever the batch."""
        length = min(self.block_size, length)
        rows = [torch.Generator().manual_seed(self.seed + row + 7919 * seed) for row in range(batch)]
        draws = [torch.randint(len(self.alphabet), (length,), generator=generator) for generator in rows]
        return self.alphabet[torch.stack(draws)].to(self.device)

    @property
    def takes_mask(self) -> bool:
        """Whether forward() has an `attention_mask` that means 1 = real, 0 = padding."""
        return bool(getattr(self.model, "supports_attention_mask", False))

    def run(
        self, ids: torch.Tensor, source: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The model's own output for `ids`, in whatever mode it is; a decoder gets `source` beside them.

        `mask` (1 = real, 0 = padding) is over what is read: `ids`, or an encoder-decoder's source.
        """
        more = {} if mask is None else {"attention_mask": mask}
        if self.task == "seq2seq":
            return self.model(self.source(len(ids)) if source is None else source, ids, **more)
        return self.model(ids, **more)

    def logits(self, ids: torch.Tensor, training: bool = False, reseed: bool = True, **more) -> torch.Tensor:
        """Logits (B, T, V), or (B, K) of a classifier, as float32, without gradients; `more` is `run`'s."""
        self.model.train(training)
        if reseed:
            self.reseed()
        with torch.no_grad():
            return self.run(ids, **more).float()

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, **more) -> torch.Tensor:
        """What training minimises: the mean cross-entropy and whatever the model adds in `aux_loss`."""
        return with_extra(self.model, loss_of(self.run(ids, **more), targets))

    def wake(self) -> int:
        """Open the paths that parameters of (almost) zero close, by small numbers; `reset` undoes it.

        Zero-init projections, ReZero and LayerScale gains would otherwise hide what is behind them.
        Returns how many were filled.
        """
        woken = 0
        with torch.no_grad():
            for param in self.model.parameters():
                if param.is_floating_point() and param.numel() and param.abs().max() < 1e-3:
                    noise = torch.randn(param.shape, generator=self.generator)
                    fresh = noise / param.shape[-1] ** 0.5 if param.dim() > 1 else 0.1 + 0.02 * noise
                    param.copy_(fresh)
                    woken += 1
        return woken

    def layers(self) -> list[tuple[str, nn.Module]]:
        """The children of the ModuleList or Sequential that holds the most parameters: usually the blocks."""
        stacks = []
        for path, module in self.model.named_modules():
            if isinstance(module, (nn.ModuleList, nn.Sequential)):
                children = [
                    (f"{path}.{name}", child)
                    for name, child in module.named_children()
                    if next(child.parameters(), None) is not None
                ]
                if len(children) > 1:
                    stacks.append((sum(p.numel() for p in module.parameters()), children))
        return max(stacks, key=lambda stack: stack[0])[1] if stacks else []


def locate(error: BaseException) -> str:
    """An error in one line: type, first line of its message, and where in the model's own code it arose."""
    text = (str(error).strip() or "no message").splitlines()[0]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        library = frame.filename.startswith(STDLIB) and "site-packages" not in frame.filename
        if not library and not frame.filename.startswith(NOT_THE_MODEL):
            line = f": {frame.line}" if frame.line else ""
            place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
            return f"{type(error).__name__}: {text} (at {place}{line})"
    return f"{type(error).__name__}: {text}"


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats; logits (B, T, V) and targets (B, T), or logits (B, K) and classes (B,)."""
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten())


def backward(subject: Subject, ids: torch.Tensor, targets: torch.Tensor) -> float | None:
    """Loss of one training-mode pass, gradients left on the parameters; None where it depends on none."""
    subject.model.train()
    subject.reseed()
    loss = subject.loss(ids, targets)
    if not loss.requires_grad:
        return None
    loss.backward()
    make_dense(subject.model)
    return loss.item()


def with_extra(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """The loss and what the model's last forward pass left in `aux_loss`, where that has a slope."""
    extra = getattr(model, "aux_loss", None)
    return loss + extra if isinstance(extra, torch.Tensor) and extra.requires_grad else loss


def make_dense(model: nn.Module) -> None:
    """Sparse gradients, as nn.Embedding(sparse=True) gives them, in the form that clipping and AdamW take."""
    for param in model.parameters():
        if param.grad is not None and param.grad.is_sparse:
            param.grad = param.grad.to_dense()


@contextmanager
def watching(modules: Iterable[tuple[str, nn.Module]], see: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Inside, `see` is told the name, the module and the output of each of the modules that runs."""

    def hook(name: str) -> Callable:
        return lambda module, args, out: see(name, module, out)  # `see` returns None: the output stays

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def first_tensor(out: Any) -> torch.Tensor | None:
    """The tensor that a layer gives on: its output, or the first of several."""
    out = out[0] if isinstance(out, (tuple, list)) and out else out
    return out if isinstance(out, torch.Tensor) else None


def relative(base: torch.Tensor, changed: torch.Tensor) -> float:
    """The largest difference, in units of the base's spread; NaN counts as infinitely different."""
    moved = (changed - base).abs().max() / base.std().clamp_min(1e-12)
    return torch.nan_to_num(moved, nan=float("inf")).item()


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
