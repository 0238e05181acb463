"""What layers and weights hold: effective ranks, outliers, and what each layer already knows of the answer.

N vectors, C channels, T tokens. Knows no data: sequences are random ids.
"""

import math
import time

import torch
from torch import Tensor

from utils.validation.attribution import divergence
from utils.validation.figures import MAX_BARS, bars
from utils.validation.observe import layer_outputs, longest, output_replaced, stages, tier2
from utils.validation.report import Check
from utils.validation.subject import Subject

VECTORS = 512  # that a layer's rank is measured on; a rank cannot be larger
WIDEST, RANK_SECONDS = 4096, 10.0  # matrices beyond this take minutes; processor time for all of them
COLLAPSED = 1.5  # an effective rank below it: one direction holds almost everything
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0  # Sun et al. 2024: so large, and so many times the median
MOST_LAYERS = 32
NO_LAYERS = "not available, because no layer with an output (B, T, C) was found"


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values, as shares of their sum: n for the identity, 1 for an outer product.

    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality". 0 for a matrix of zeros.
    """
    matrix = matrix.detach().double()
    small = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T  # far cheaper than an SVD
    values = torch.linalg.eigvalsh(small).clamp_min(0).sqrt()
    if not values.sum() > 0:
        return 0.0
    # Rounding leaves 1e-16 where an eigenvalue is zero, so 1e-8 where a singular value is.
    shares = torch.where(values < 1e-7 * values.max(), 0.0, values / values.sum())
    return torch.special.entr(shares / shares.sum()).sum().exp().item()


@tier2("A layer whose vectors all point the same way has lost what tells tokens apart.")
def check_representations(subject: Subject) -> Check:
    """The effective rank of each layer's output over a few hundred different tokens."""
    length = longest(subject)
    found = layer_outputs(subject, subject.tokens(max(1, VECTORS // length), length), stages(subject)[:MAX_BARS])
    ranks, most = {}, {}
    for name, out in found.items():
        vectors = out.flatten(0, -2)[:VECTORS]  # (N, C)
        if min(vectors.shape) < 2 or not torch.isfinite(vectors).all() or vectors.shape[1] > WIDEST:
            continue
        ranks[name] = effective_rank(vectors - vectors.mean(0))
        most[name] = min(len(vectors) - 1, vectors.shape[1])
    if not ranks:
        return Check("representation rank", "skip", NO_LAYERS)
    lowest = min(ranks, key=lambda name: ranks[name] / most[name])
    last = next(reversed(ranks))
    values = {"effective_rank": ranks, "largest_possible": most}
    figure = bars(f"Effective rank of each layer's output (at most {max(most.values())})", ranks, "effective rank")
    measured = f"lowest {lowest}: {ranks[lowest]:.1f} of {most[lowest]}; last {last}: {ranks[last]:.1f} of {most[last]}"
    threshold = f"more than {COLLAPSED:g} directions"
    if ranks[lowest] < COLLAPSED < most[lowest] / 4:
        advice = (
            f"All tokens look almost the same after {lowest}: look for averaging over time, a residual connection "
            "that is missing, or weights so large that one direction drowns the others."
        )
        return Check("representation rank", "warn", measured, threshold, advice, values=values, figure=figure)
    return Check("representation rank", "pass", measured, threshold, values=values, figure=figure)


@tier2("Weights of low rank hold less than their size: room to compress, or a sign of a collapse.")
def check_weight_ranks(subject: Subject) -> Check:
    """The effective rank of every weight matrix, as a share of the largest possible."""
    began, ranks, most, zero, repeated, left = time.process_time(), {}, {}, [], [], 0
    for name, weight in subject.model.named_parameters():
        if weight.dim() < 2 or min(weight.shape[-2:]) < 2 or not torch.isfinite(weight).all():
            continue
        matrix = weight if weight.dim() == 2 else weight.flatten(0, -2)
        if min(matrix.shape) > WIDEST or time.process_time() - began > RANK_SECONDS:
            left += 1
            continue
        rank = effective_rank(matrix)
        if rank and matrix[0].unique().numel() > 1 and (matrix == matrix[:1]).all():
            repeated.append(name)  # one row for all, as Mamba's A_log: a choice, not a collapse
        elif rank:
            ranks[name], most[name] = rank, min(matrix.shape)
        else:
            zero.append(name)
    if not ranks:
        return Check("weight rank", "skip", "not available, because there is no weight matrix other than zeros")
    shares = {name: ranks[name] / most[name] for name in sorted(ranks, key=lambda name: ranks[name] / most[name])}
    lowest, middle = next(iter(shares)), sorted(shares.values())[len(shares) // 2]
    shown = dict(list(shares.items())[:16])
    values = {"share": shares, "effective_rank": ranks, "zero": zero, "repeated": repeated, "left_out": left}
    few = f" (of {len(shares)})" if len(shares) > len(shown) else ""
    figure = bars(f"Effective rank of weights, lowest first{few}", shown, "share of full rank")
    measured = f"lowest {lowest}: {ranks[lowest]:.1f} of {most[lowest]} ({shares[lowest]:.0%}); typical {middle:.0%}"
    measured += f"; {len(zero)} all zero" if zero else ""
    measured += f"; {len(repeated)} with one row repeated" if repeated else ""
    measured += f"; {left} too large to measure in time" if left else ""
    threshold = f"more than {COLLAPSED:g} directions"
    broken = [name for name in ranks if ranks[name] < COLLAPSED < most[name] / 4]
    if broken:
        advice = (
            f"{broken[0]} holds almost one direction only. A trained model: its layer learned next to nothing else, or "
            "weight decay took the rest. Before training: look at how it is initialised (a constant has rank 1)."
        )
        return Check("weight rank", "warn", measured, threshold, advice, values=values, figure=figure)
    return Check("weight rank", "pass", measured, threshold, values=values, figure=figure)


@tier2("A few huge channels carry no meaning but spoil low-precision formats: know them before you quantize.")
def check_outliers(subject: Subject) -> Check:
    """The largest activation of each layer, in units of the layer's RMS, and the channel where it is.

    Massive activations: Sun et al. 2024, https://arxiv.org/abs/2402.17762.
    """
    length = longest(subject)
    found = layer_outputs(subject, subject.tokens(2, length), stages(subject)[:MAX_BARS])
    names, ratios, channels, massive = [], [], {}, []
    for name, out in found.items():
        size = out.abs().flatten(0, -2)  # (N, C)
        if not torch.isfinite(size).all() or not size.any():
            continue
        per_channel = size.amax(0)
        channel, largest = int(per_channel.argmax()), per_channel.max().item()
        names.append(name)
        ratios.append(largest / size.square().mean().sqrt().item())
        channels[name] = channel
        if largest > MASSIVE and largest > MASSIVE_RATIO * size.median().item():
            huge = (per_channel > max(MASSIVE, MASSIVE_RATIO * size.median().item())).nonzero().flatten().tolist()
            massive.append({"layer": name, "channels": huge[:16], "largest": largest})
    if not names:
        return Check("activation outliers", "skip", NO_LAYERS)
    top = max(range(len(names)), key=lambda i: ratios[i])
    values = {"largest_over_rms": dict(zip(names, ratios, strict=True)), "channel": channels, "massive": massive}
    figure = bars("Largest activation of each layer", values["largest_over_rms"], "largest / RMS", log=True)
    measured = f"largest {ratios[top]:.1f} times its layer's RMS, in {names[top]}, channel {channels[names[top]]}"
    if massive:
        channel_words = ", ".join(map(str, massive[0]["channels"][:4]))
        measured += (
            f"; massive activations in {len(massive)} layers, first {massive[0]['layer']}, channels {channel_words} "
            "(usual in trained language models; quantize these channels apart)"
        )
    return Check("activation outliers", "pass", measured, "for information", values=values, figure=figure)


@tier2("Shows at which depth the answer forms: layers after that refine it, or do little.")
def check_logit_lens(subject: Subject) -> Check:
    """What the model would answer if the layers after each one were left out.

    Each layer's output is put in the place of the last one's, so that the final norm and the output layer read it,
    whatever they are called. The idea: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    modules = stages(subject) if subject.layers() else []
    ids = subject.tokens(1, longest(subject))
    found = layer_outputs(subject, ids, modules)
    order = [name for name in found if found[name].shape == next(reversed(found.values())).shape]
    if len(order) < 2:
        measured = "not available, because there is no stack of two or more layers with outputs of one shape"
        return Check("logit lens", "skip", measured)
    last = dict(modules)[order[-1]]
    final = subject.logits(ids)
    step = -(-len(order) // MOST_LAYERS)
    looked = sorted({*range(0, len(order), step), len(order) - 1})
    agreement, apart = [], []
    for index in looked:
        with output_replaced(last, found[order[index]]):
            logits = subject.logits(ids)
        agreement.append((logits.argmax(-1) == final.argmax(-1)).float().mean().item())
        apart.append(divergence(final, logits).mean().item())
    names = [order[index] for index in looked]
    values = {"layers": names, "agreement": agreement, "kl": apart}
    if not all(map(math.isfinite, apart)):
        advice = "Look at the tier-1 findings: some logits are NaN or infinite."
        return Check("logit lens", "warn", "some logits are not finite", "finite", advice, values=values)
    settled = next(i for i in range(len(looked)) if all(share >= 0.9 for share in agreement[i:]))
    figure = {
        "kind": "lines",
        "title": "Logit lens: what each layer would answer",
        "x_label": "layer, in order of use",
        "y_label": "share, or nats",
        "series": [
            {"name": "same best guess as the whole model, share", "x": looked, "y": agreement},
            {"name": "KL divergence from the final answer, nats", "x": looked, "y": apart},
        ],
    }
    measured = (
        f"after {names[0]} the best guess is the final one in {agreement[0]:.0%} of the places; from {names[settled]} "
        f"on ({looked[settled] + 1} of {len(order)} layers) in 90 % or more"
    )
    return Check("logit lens", "pass", measured, "for information", values=values, figure=figure)
