"""What a model weighs, and what training it will: counted once, predicted for batches nobody has run.

Runs forward passes that keep what a backward pass would need. Bytes are decimal: 1 GB is 1e9 bytes.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn

from utils.validation.figures import bars
from utils.validation.report import Check, judged, named
from utils.validation.subject import Subject, because

GPUS = {"T4 16 GB": 15.6e9, "A100 40 GB": 42.0e9}  # what their drivers report as theirs, about
USABLE = 0.9  # of it: the context, the libraries' work space and fragments take the rest


@dataclass(frozen=True)
class Bill:
    """Bytes of training: what is there at once, and what comes with every sequence."""

    weights: int
    moments: int
    """Gradients and AdamW's two averages, of what is trainable."""
    fixed: float
    """Activations whatever the batch and the length."""
    per_mask: float
    """Of two positions, whatever the batch: a mask that is shared."""
    per_token: float
    per_pair: float
    """Of two positions of the same sequence: attention that keeps its scores."""

    def activations(self, batch: int, length: int) -> float:
        """Bytes kept between forward and backward, and the gradient of the logits beside them."""
        shared = self.fixed + self.per_mask * length**2
        return shared + batch * (self.per_token * length + self.per_pair * length**2)

    def training(self, batch: int, length: int) -> float:
        """All of it."""
        return self.weights + self.moments + self.activations(batch, length)

    def largest_batch(self, capacity: float, length: int) -> int:
        """The most sequences that fit into so many bytes; 0 if none does."""
        room = USABLE * capacity - self.training(0, length)
        return max(0, int(room / max(self.activations(1, length) - self.activations(0, length), 1.0)))


@because("Two names for one tensor save memory on purpose; two equal tensors that drift apart are an accident.")
def check_parameters(subject: Subject) -> Check:
    """How many parameters, the largest tensors, which are tied, and which only look tied."""
    everything = list(subject.original.named_parameters(remove_duplicate=False))
    unique = _unique(everything)
    total = sum(p.numel() for _, p in unique.values())
    trainable = sum(p.numel() for _, p in unique.values() if p.requires_grad)
    ties = [(name, unique[_place(p)][0]) for name, p in everything if unique[_place(p)][0] != name]
    tied = sum(p.numel() for _, p in everything) - total
    largest = sorted(unique.values(), key=lambda item: -item[1].numel())[:3]
    told = f"{total:,} parameters" + ("" if trainable == total else f" ({trainable:,} trainable)")
    told += f"; largest: {', '.join(f'{name} {p.numel() / total:.0%}' for name, p in largest) or 'none'}"
    if ties:
        told += f"; tied, counted once: {named([f'{name} = {first}' for name, first in ties])} ({tied:,} saved)"
    values = {"parameters": total, "trainable": trainable, "tied": tied}
    findings, clones = [], _clones(subject.original, list(unique.values()))
    drifting = [f"{b} = {a}{how}" for a, b, how, lookup in clones if lookup]
    if drifting:
        advice = (
            "They start equal and drift apart with the first step: share the parameter itself "
            "(head.weight = embedding.weight), not a copy or a transposed copy of its numbers."
        )
        findings.append(("warn", f"{told}; equal numbers in separate tensors: {named(drifting)}", advice))
    values["equal_copies"] = [b for _, b, _, _ in clones]
    if len(drifting) < len(clones):
        told += f"; {len(clones) - len(drifting)} tensors start as copies of another layer's"
    return judged("parameters", findings, told, "for information; what is tied is one tensor", values)


@because("A batch that does not fit ends the run after the first steps, often hours after it was queued.")
def check_memory(subject: Subject) -> Check:
    """The megabytes (1e6 bytes) that training needs by batch, and the largest batches that fit well-known GPUs."""
    bill, block = bill_of(subject), subject.block_size
    free = free_bytes(subject.device)
    one = bill.training(1, block)
    fits = {name: bill.largest_batch(size, block) for name, size in GPUS.items()}
    if free:
        fits["here"] = bill.largest_batch(free, block)
    words = ", ".join(f"{count:,} {'' if name == 'here' else 'on '}{name}" for name, count in fits.items())
    measured = (
        f"weights {bill.weights / 1e6:,.1f} MB; training {one / 1e6:,.1f} MB with AdamW at (1, {block}), of which "
        f"activations {bill.activations(1, block) / 1e6:,.1f} MB; largest batch of {block} tokens, "
        f"in this precision: {words}"
    )
    values = {
        "weights_mb": bill.weights / 1e6, "gradients_and_optimizer_mb": bill.moments / 1e6,
        "activations_mb": bill.activations(1, block) / 1e6, "training_mb": one / 1e6,
        "fixed_bytes": bill.fixed, "bytes_per_mask_pair": bill.per_mask,
        "bytes_per_token": bill.per_token, "bytes_per_pair": bill.per_pair,
        "free_mb": free and free / 1e6, "largest_batch": fits,
    }  # fmt: skip
    parts = {
        "weights": bill.weights, "gradients": bill.moments / 3, "optimizer": 2 * bill.moments / 3,
        "activations": bill.activations(1, block),
    }  # fmt: skip
    megabytes = {part: size / 1e6 for part, size in parts.items()}
    figure = bars(f"Memory of training one sequence of {block} tokens", megabytes, "MB")
    threshold = f"{free / 1e6:,.0f} MB free" if free else "for information"
    if free and one - bill.weights > free:
        advice = "Training will not fit here: take fewer layers, a shorter block, a smaller vocabulary."
        return Check("memory", "warn", measured, threshold, advice, values=values, figure=figure)
    return Check("memory", "pass", measured, threshold, values=values, figure=figure)


def bill_of(subject: Subject) -> Bill:
    """Measured at two batches and two lengths, all short; every other size is computed from those."""
    unique = [param for _, param in _unique(subject.original.named_parameters()).values()]
    weights = sum(p.nbytes for p in unique)
    moments = 3 * sum(p.nbytes for p in unique if p.requires_grad)
    long = subject.affordable(128)
    short = max(1, long // 2)
    # At each length two batches tell what comes with a sequence from what is there once: (once, each).
    at = {}
    for length in {short, long}:
        one, two = _kept(subject, 1, length), _kept(subject, 2, length)
        at[length] = max(0, 2 * one - two), min(one, two - one)
    if long == short:
        return Bill(weights, moments, at[long][0], 0.0, at[long][1] / long, 0.0)
    per_mask = max(0.0, (at[long][0] - at[short][0]) / (long**2 - short**2))
    per_pair = (at[long][1] / long - at[short][1] / short) / (long - short)
    if per_pair * long**2 < 0.01 * at[long][1]:  # rounding: no pairs are kept
        per_pair = 0.0
    per_token = at[long][1] / long - per_pair * long
    return Bill(weights, moments, max(0.0, at[long][0] - per_mask * long**2), per_mask, per_token, per_pair)


def _kept(subject: Subject, batch: int, length: int) -> int:
    """Bytes that a training-mode forward pass keeps for its backward pass, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in (*subject.model.parameters(), *subject.model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    subject.model.train()
    subject.reseed()
    ids, targets = subject.tokens(batch, length), subject.targets(batch, length)
    more = {"source": subject.source(batch, length)} if subject.task == "seq2seq" else {}  # as long as the target
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Named, because storage addresses are told apart only as long as the graph keeps them all alive.
        loss = subject.loss(ids, targets, **more)
    scores = targets.numel() * (subject.classes or subject.vocab_size) * 4  # the gradient of the logits, in float32
    total = sum(kept.values()) + scores
    del loss
    return total


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free now, in bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows and macOS do not tell
        return None


def _place(param: torch.Tensor) -> tuple[int, int]:
    return param.untyped_storage().data_ptr(), param.storage_offset()


def _unique(named_parameters) -> dict[tuple[int, int], tuple[str, torch.Tensor]]:
    """By storage, not by object: `head.weight.data = tok.weight.data` ties too."""
    unique: dict = {}
    for name, param in named_parameters:
        unique.setdefault(_place(param), (name, param))
    return unique


def _clones(model: nn.Module, params: list[tuple[str, torch.Tensor]]) -> list[tuple[str, str, str, bool]]:
    """Pairs (first, second, " transposed" or "", whether one is an embedding) of equal matrices kept twice."""
    lookups = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    seen: dict = {}
    pairs = []
    for name, param in params:
        if param.dim() != 2 or param.numel() < 2:
            continue
        weight = param.detach()
        total = weight.double().sum().item()
        if weight.flatten()[:64].unique().numel() < 2:  # zeros and ones are equal everywhere
            continue
        key = (frozenset(weight.shape), round(total, 4))
        for other_name, other in seen.get(key, []):
            straight = weight.shape == other.shape and torch.equal(weight, other.detach())
            if straight or (weight.shape == other.shape[::-1] and torch.equal(weight, other.detach().T)):
                lookup = id(param) in lookups or id(other) in lookups
                pairs.append((other_name, name, "" if straight else " transposed", lookup))
                break
        seen.setdefault(key, []).append((name, param))
    return pairs
