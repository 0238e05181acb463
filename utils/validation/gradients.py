"""What training does to the parameters: one backward pass, and a few optimizer steps. Knows no data."""

import re
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from utils.validation.figures import bars
from utils.validation.report import Check, judged, named
from utils.validation.subject import Subject, backward, because

SLOPES, SLOPES_BROKEN = 1e3, 1e6  # between the layers' gradient norms; healthy deep models stay under 100
STEPS, LEARNED = 30, 0.6
RATES = (3e-3, 1e-2, 1e-3)  # one of these suits any model from a thousand to a billion parameters
LEARN_SECONDS = 12.0


@because("Training moves only what the gradient reaches, and only as far as the gradient is of a sane size.")
def check_gradients(subject: Subject) -> Check:
    """One backward pass reaches every trainable parameter, and layers get gradients of comparable size."""
    threshold = f"all reached, finite, not zero; layers within a factor {SLOPES:,.0f}"
    say = partial(Check, "gradients", threshold=threshold)
    trainable = {name: param for name, param in subject.model.named_parameters() if param.requires_grad}
    if not trainable:
        return say("warn", "no parameter is trainable", advice="Set requires_grad on what should learn.")
    length = subject.affordable(64, 4)
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
        advice = "A division by zero, sqrt(0) or log(0) may have a fine value and no slope: add an eps inside."
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
        idle = [name for name in dead if _one_of_several(subject, name, set(trainable) - set(dead))]
        if idle:
            advice = "Fine for experts that no token was sent to; in training a balance loss should wake them."
            findings.append(("warn", f"idle beside active twins: {named(idle)}", advice))
        dead = [name for name in dead if name not in idle]
        weights = [name for name in dead if trainable[name].dim() > 1 and length > 1]
        if weights:
            advice = (
                "Nothing they do reaches the loss: a ReLU that is never active, a product with zero, a "
                "saturated or clamped value, or a mask that hides them."
            )
            findings.append(("fail", f"gradient exactly zero: {named(weights)}", advice))
        elif dead:
            advice = "Right for a bias of attention keys; otherwise a later norm or softmax cancels the value."
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
    good = f"gradients reach all {len(norms)} trainable tensors"
    good += f"; their sizes by layer within a factor {ratio:.2g}" if len(slopes) > 1 else ""
    parts = slopes or {name: norm for name, norm in norms.items() if np.isfinite(norm)}
    figure = bars("Gradient of the loss, by layer", parts, "norm", log=True)
    return replace(judged("gradients", findings, good, threshold, values), figure=figure)


def _one_of_several(subject: Subject, name: str, alive: set[str]) -> bool:
    """Whether, within its layer, a twin by name and shape in the same list (an expert) is alive."""
    layer = next((path for path, _ in subject.layers() if name.startswith(f"{path}.")), "")
    shape = {key: param.shape for key, param in subject.model.named_parameters()}
    inside = name[len(layer) :]
    for index in re.finditer(r"\.\d+(?=\.)", inside):
        before, after = layer + inside[: index.start()], inside[index.end() :]
        twin = re.compile(re.escape(before) + r"\.\d+" + re.escape(after))
        if any(twin.fullmatch(other) and shape[other] == shape[name] for other in alive):
            return True
    return False


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


@because("A model that cannot learn a handful of tokens by heart will not learn a language.")
def check_learning(subject: Subject) -> Check:
    """A few AdamW steps on one tiny batch: whatever can learn at all can learn that by heart."""
    length, batch = subject.affordable(16), 8 if subject.task == "classification" else 2
    ids, targets = subject.tokens(batch, length), subject.targets(batch, length)
    if subject.task == "classification":  # at least two classes: one alone could be learned without reading
        targets[0] = (targets[1] + 1) % subject.classes
    params = [param for param in subject.model.parameters() if param.requires_grad]
    say = partial(Check, "learning", threshold=f"loss falls by {1 - LEARNED:.0%} in {STEPS} steps")
    if not params:
        return say("skip", "no parameter is trainable")
    even, began, told = float(np.log(subject.outcomes)), time.perf_counter(), []
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
        advice = "Too large a model, or too busy a machine, to tell in time. Try a smaller one of the same design."
        return say("skip", f"{measured}, then time was up", advice=advice, values=values)
    advice = (
        "It cannot learn even one small batch by heart, so it will not learn a corpus. Look at the other "
        "findings first; else look for frozen parameters, a softmax before the loss, very large weights, "
        "or dropout near 1."
    )
    tried = ", ".join(f"{rate:g}" for rate in RATES)
    return say("fail", f"{measured} (tried {tried})", advice=advice, values=values)
