"""Is this model sound? Every tier-1 check, each by itself, on a private copy of the model.

The checks here run backward passes, optimizer steps or a clock; those in `probes.py` only look at logits.
Knows no data, no tokenizer and no trainer: batches are random token ids.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from utils.validation.probes import (
    check_batch,
    check_causality,
    check_context,
    check_determinism,
    check_shapes,
    check_stability,
)
from utils.validation.report import Check, Report, judged, named
from utils.validation.subject import Subject, backward, locate, loss_of

INIT_LOW, INIT_HIGH, INIT_BROKEN = 0.9, 1.15, 10.0  # of ln V
GROWTH = 1e3  # between the quietest and the loudest layer's output
SLOPES, SLOPES_BROKEN = 1e3, 1e6  # between the layers' gradient norms; healthy deep models stay under 100
STEPS, LEARNED = 30, 0.6
RATES = (3e-3, 1e-2, 1e-3)  # one of these suits any model from a thousand to a billion parameters
LEARN_SECONDS, SPEED_SECONDS = 8.0, 1.0


def check_initialisation(subject: Subject) -> Check:
    """The loss on unpredictable tokens against ln V, and how the layers' outputs grow."""
    length = min(subject.length, 128)
    ids, targets = subject.tokens(4, length), subject.targets(4, length)
    sizes: dict[str, float] = {}

    def watch(name):
        def hook(module, args, out):
            out = out[0] if isinstance(out, (tuple, list)) and out else out
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                sizes[name] = out.float().square().mean().sqrt().item()

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in subject.layers()]
    try:
        loss = loss_of(subject.logits(ids), targets).item()
    finally:
        for hook in hooks:
            hook.remove()
    even = float(np.log(len(subject.alphabet)))
    low, high = INIT_LOW * even, max(INIT_HIGH * even, even + 0.3)  # tiny vocabularies: ln V itself is small
    alive = [size for size in sizes.values() if size > 0]
    growth = max(alive) / min(alive) if alive else 1.0
    values = {"loss": loss, "ln_vocab": even, "growth": growth, "layers": len(sizes)}
    findings = []
    told = f"loss on random tokens {loss:.2f}, ln(V) = {even:.2f}"
    if not loss <= INIT_BROKEN * even:
        advice = (
            "No trained model is this sure of wrong answers: weights are far too large. Draw linear layers "
            "and embeddings with std 0.02 (or 1/sqrt(fan-in)) and end with a norm before the output layer."
        )
        findings.append(("fail", f"{told}: exploding", advice))
    elif loss > high:
        advice = (
            "Of a trained model this is normal: it is sure of what it learned, and random tokens are not "
            "that. At initialisation it means confident wrong answers: make the output layer (or the "
            "embedding tied to it) smaller, std 0.02."
        )
        findings.append(("warn", told, advice))
    elif loss < low:
        advice = "Nobody can predict random tokens: look for a loss or a lookup of labels inside forward()."
        findings.append(("warn", f"{told}: too good", advice))
    if growth > GROWTH:
        advice = (
            "Activations swell or fade from layer to layer: put a norm before each sub-layer (pre-LN) and "
            "divide the std of the residual projections by sqrt(2 * n_layer), as GPT-2 does."
        )
        findings.append(("warn", f"layer outputs differ {growth:.1e}-fold in size", advice))
    good = told + (f"; layer outputs within a factor {growth:.2g} in size" if len(sizes) > 1 else "")
    return judged("initialisation", findings, good, f"loss in {low:.2f}..{high:.2f} before training", values)


def check_gradients(subject: Subject) -> Check:
    """One backward pass reaches every trainable parameter, and layers get gradients of comparable size."""
    threshold = f"all reached, finite, non-zero; layers within {SLOPES:.0e}"
    say = partial(Check, "gradients", threshold=threshold)
    trainable = {name: param for name, param in subject.model.named_parameters() if param.requires_grad}
    if not trainable:
        return say("skip", "no parameter is trainable", advice="Set requires_grad on what should learn.")
    length = min(subject.length, 64)
    ids, targets = subject.tokens(4, length), subject.targets(4, length)
    loss = backward(subject, ids, targets)
    if loss is None:
        advice = "forward() cuts the whole graph: torch.no_grad(), .detach(), .item() or a detour by NumPy."
        return say("fail", "the loss depends on no trainable parameter", advice=advice)
    norms = {name: param.grad.norm().item() for name, param in trainable.items() if param.grad is not None}
    missing = [name for name in trainable if name not in norms]
    broken = [name for name, norm in norms.items() if not np.isfinite(norm)]
    zero = [name for name, norm in norms.items() if norm == 0]
    slopes = {}
    for name, layer in subject.layers():
        squares = sum(p.grad.double().square().sum().item() for p in layer.parameters() if p.grad is not None)
        if squares > 0:
            slopes[name] = squares**0.5
    ratio = max(slopes.values()) / min(slopes.values()) if slopes and not broken else 1.0
    subject.model.zero_grad(set_to_none=True)

    findings = []
    if broken:
        advice = (
            "A division by zero, sqrt(0) or log(0) may have a fine value and no slope: add an eps inside."
        )
        findings.append(("fail", f"NaN or infinite gradient: {named(broken)}", advice))
    detached = _that_matter(subject, missing, ids)
    if detached:
        advice = (
            "These change the output but cannot learn: .detach(), .data, torch.no_grad(), argmax or "
            "rounding stands between them and the loss."
        )
        findings.append(("fail", f"used but cut off from the gradient: {named(detached)}", advice))
    unused = [name for name in missing if name not in detached]
    if unused:
        advice = "Declared, but forward() does not use them: call them, or delete them."
        findings.append(("warn", f"unused: {named(unused)}", advice))
    if zero:
        subject.wake()
        backward(subject, ids, targets)
        dead = [name for name in zero if trainable[name].grad is None or not trainable[name].grad.any()]
        subject.reset()
        asleep = [name for name in zero if name not in dead]
        # A bias on attention keys shifts all scores of a row alike, which softmax ignores: zero is right.
        # With one position there is nothing to attend to, so zero is right for queries and keys too.
        weights = [name for name in dead if trainable[name].dim() > 1 and length > 1]
        if weights:
            advice = (
                "Nothing they do reaches the loss: a ReLU that is never active, a product with zero, a "
                "saturated or clamped value, or a mask that hides them."
            )
            findings.append(("fail", f"gradient exactly zero: {named(weights)}", advice))
        elif dead:
            advice = (
                "Right for a bias of attention keys; otherwise a later norm or softmax cancels the value."
            )
            findings.append(("warn", f"gradient exactly zero: {named(dead)}", advice))
        if asleep:
            advice = (
                "Fine when deliberate (zero-init output layers, ReZero, muP): they start to learn once the "
                "zero projection after them has moved, which is the first step."
            )
            told = f"no gradient yet, behind a projection that starts at zero: {named(asleep)}"
            findings.append(("warn", told, advice))
    if ratio > SLOPES:
        kind = "fail" if ratio > SLOPES_BROKEN else "warn"
        least, most = min(slopes, key=slopes.get), max(slopes, key=slopes.get)
        advice = (
            "Gradients vanish or explode on their way down: add residual connections, put norms before the "
            "sub-layers, and avoid stacked sigmoid or tanh."
        )
        findings.append((kind, f"gradient of {most} is {ratio:.1e} times that of {least}", advice))
    values = {"loss": loss, "reached": len(norms), "trainable": len(trainable), "layer_ratio": ratio}
    values["total_norm"] = sum(norm**2 for norm in norms.values()) ** 0.5
    good = f"all {len(norms)} trainable tensors reached"
    good += f"; layers within a factor {ratio:.2g}" if len(slopes) > 1 else ""
    return judged("gradients", findings, good, threshold, values)


def _that_matter(subject: Subject, names: list[str], ids: torch.Tensor, most: int = 24) -> list[str]:
    """Which of these parameters change the logits when they change."""
    params = dict(subject.model.named_parameters())
    base = subject.logits(ids)

    def matter(group):
        with torch.no_grad():
            for name in group:
                noise = torch.randn(params[name].shape, generator=subject.generator)
                params[name].add_(noise.to(subject.device))
        changed = not torch.equal(subject.logits(ids), base)
        subject.reset()
        return changed

    if not names or not matter(names):
        return []
    return [name for name in names[:most] if matter([name])] or names


def check_learning(subject: Subject) -> Check:
    """A few AdamW steps on one tiny batch: whatever can learn at all can learn that by heart."""
    length = min(subject.length, 16)
    ids, targets = subject.tokens(2, length), subject.targets(2, length)
    params = [param for param in subject.model.parameters() if param.requires_grad]
    say = partial(Check, "learning", threshold=f"loss falls by {1 - LEARNED:.0%} in {STEPS} steps")
    if not params:
        return say("skip", "no parameter is trainable")
    even, began, told = float(np.log(subject.vocab_size)), time.perf_counter(), []
    for rate in RATES:
        subject.reset()
        optimizer = torch.optim.AdamW(params, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        losses = []
        for _ in range(STEPS + 1):
            loss = backward(subject, ids, targets)
            if loss is None:
                return say("skip", "nothing to train: the loss depends on no parameter")
            losses.append(loss)
            # A start far above ln V (large weights, a model trained on other data) has a long way to go.
            goal = losses[0] - (1 - LEARNED) * min(losses[0], 2 * even)
            if loss <= goal or not np.isfinite(loss) or time.perf_counter() - began > LEARN_SECONDS:
                break
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        told.append((min(losses), len(losses) - 1, rate, losses[0]))
        if losses[-1] <= goal or time.perf_counter() - began > LEARN_SECONDS:
            break
    last, steps, rate, first = told[-1] if losses[-1] <= goal else min(told)
    values = {"first": first, "last": last, "steps": steps, "learning_rate": rate}
    measured = f"loss {first:.2f} -> {last:.2f} in {steps} AdamW steps at learning rate {rate:g}"
    if losses[-1] <= goal:
        return say("pass", measured, values=values)
    if len(told) < len(RATES):
        advice = (
            "Too large a model, or too busy a machine, to tell in time. Try a smaller one of the same design."
        )
        return say("skip", f"{measured}, then time was up", advice=advice, values=values)
    advice = (
        "It cannot learn even one small batch by heart, so it will not learn a corpus. Look at the other "
        "findings first; else look for frozen parameters, a softmax before the loss, very large weights, "
        "or dropout near 1."
    )
    tried = ", ".join(f"{rate:g}" for rate in RATES)
    return say("fail", f"{measured} (tried {tried})", advice=advice, values=values)


def check_memory(subject: Subject) -> Check:
    """Parameters, the largest tensors, and the megabytes (1e6 bytes) that one training sequence needs."""
    everything = list(subject.original.named_parameters(remove_duplicate=False))
    unique = {}
    for name, param in everything:  # by storage, not by object: `head.weight.data = tok.weight.data` ties too
        unique.setdefault((param.untyped_storage().data_ptr(), param.storage_offset()), (name, param))
    total = sum(p.numel() for _, p in unique.values())
    tied = sum(p.numel() for _, p in everything) - total
    trainable = sum(p.numel() for _, p in unique.values() if p.requires_grad)
    weights = sum(p.nbytes for _, p in unique.values())
    # The gradient and AdamW's two averages.
    moments = 3 * sum(p.nbytes for _, p in unique.values() if p.requires_grad)
    own = {t.untyped_storage().data_ptr() for t in (*subject.model.parameters(), *subject.model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    subject.model.train()
    subject.reseed()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Named, because storage addresses are told apart only as long as the graph keeps them all alive.
        loss = loss_of(subject.model(subject.tokens(1, subject.length)), subject.targets(1, subject.length))
    activations = sum(kept.values())
    del loss
    training, free = weights + moments + activations, _free_bytes(subject.device)
    largest = sorted(unique.values(), key=lambda item: -item[1].numel())[:3]
    shares = ", ".join(f"{name} {param.numel() / total:.0%}" for name, param in largest)
    words = f"{total:,} parameters" + ("" if trainable == total else f" ({trainable:,} trainable)")
    words += f", {tied:,} more tied and counted once" if tied else ""
    measured = (
        f"{words}; largest: {shares or 'none'}; weights {weights / 1e6:,.1f} MB; training "
        f"{training / 1e6:,.1f} MB with AdamW, of which activations {activations / 1e6:,.1f} MB at (1, "
        f"{subject.length})"
    )
    values = {
        "parameters": total, "trainable": trainable, "tied": tied, "weights_mb": weights / 1e6,
        "training_mb": training / 1e6, "activations_mb": activations / 1e6, "free_mb": free and free / 1e6,
    }  # fmt: skip
    threshold = f"{free / 1e6:,.0f} MB free" if free else "informative"
    if free and training - weights > free:
        advice = "Training will not fit here: take fewer layers, a shorter block, a smaller vocabulary."
        return Check("memory", "warn", measured, threshold, advice, values=values)
    return Check("memory", "pass", measured, threshold, values=values)


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows and macOS do not tell
        return None


def check_speed(subject: Subject) -> Check:
    """Median time of a forward pass and of forward + backward on one sequence, after warm-up."""
    length = min(subject.length, 256)
    ids, targets = subject.tokens(1, length), subject.targets(1, length)
    forward = _median_seconds(subject.device, lambda: subject.logits(ids))
    learns = any(param.requires_grad for param in subject.model.parameters())
    both = _median_seconds(subject.device, lambda: backward(subject, ids, targets)) if learns else None
    values = {"forward_ms": forward * 1e3, "tokens_per_second": length / forward}
    measured = f"forward {forward * 1e3:.1f} ms, {length / forward:,.0f} tokens/s"
    if both:
        values |= {"training_ms": both * 1e3, "training_tokens_per_second": length / both}
        measured += f"; forward + backward {both * 1e3:.1f} ms, {length / both:,.0f} tokens/s"
    measured += f" at (1, {length}) on {subject.device.type}"
    return Check("speed", "pass", measured, "informative", values=values)


def _median_seconds(device: torch.device, work: Callable) -> float:
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times, began = [], time.perf_counter()
    while len(times) < 12 and (len(times) < 3 or time.perf_counter() - began < SPEED_SECONDS):
        sync()
        start = time.perf_counter()
        work()
        sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])  # the first two warm up caches and kernels


CHECKS = {
    "shapes": check_shapes,
    "batch independence": check_batch,
    "causality": check_causality,
    "context": check_context,
    "determinism": check_determinism,
    "stability": check_stability,
    "initialisation": check_initialisation,
    "gradients": check_gradients,
    "learning": check_learning,
    "memory": check_memory,
    "speed": check_speed,
}


def run_tier1(
    model: nn.Module, vocab_size: int, block_size: int, causal: bool | None = True, seed: int = 0
) -> Report:
    """Ask every tier-1 question about a model and report the answers.

    Args:
        model: maps input_ids (B, T) int64 to logits (B, T, vocab_size). Left exactly as found: parameters,
            buffers, gradients, modes, flags, device and the process's random state.
        vocab_size: V, at least 2.
        block_size: the longest sequence the model promises to accept, in tokens.
        causal: True, future tokens must not matter; False, they must; None, only report which.
        seed: of every draw.

    Returns:
        A report with one check per question; an error inside a check is its "fail" and ends no other.

    Raises:
        TypeError: model is no nn.Module.  ValueError: vocab_size or block_size is too small.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if vocab_size < 2 or block_size < 1:
        raise ValueError(f"need vocab_size >= 2 and block_size >= 1; got {vocab_size} and {block_size}")
    with _randomness_kept(), torch.inference_mode(False), torch.enable_grad():
        subject = Subject(model, vocab_size, block_size, causal, seed)
        try:
            checks = [_isolated(name, check, subject) for name, check in CHECKS.items()]
        finally:
            subject.close()
    return Report(f"Is {type(subject.original).__name__} sound?", checks)


def _isolated(name: str, check: Callable[[Subject], Check], subject: Subject) -> Check:
    if not subject.length and check is not check_shapes:
        return Check(name, "skip", "needs logits of the right shape", "", "Repair the shapes first.")
    start = time.perf_counter()
    try:
        subject.reset()
        result = check(subject)
    except torch.OutOfMemoryError:
        result = Check(name, "skip", "out of memory", "", "Use a smaller model or block, or free the device.")
    except Exception as error:  # a stranger's model: the error is the answer
        advice = "The model raised this during the check; open that line."
        result = Check(name, "fail", locate(error), "no error", advice)
    return replace(result, seconds=time.perf_counter() - start)


@contextmanager
def _randomness_kept():
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
