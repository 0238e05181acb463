"""How does this model behave? Every tier-2 check: what to look at once a model is sound, untrained or trained.

Nothing here is a test to pass: a check warns where numbers are not finite or something collapsed, and says "not
available, because" where a model has no such part. Knows no data and no tokenizer: sequences are random token ids.
"""

import math

import torch
import torch.nn.functional as F

from utils.models.bdh import BDH
from utils.models.bdh_view import activations
from utils.validation.attention import check_attention
from utils.validation.attribution import check_attribution, check_sensitivity, check_swap
from utils.validation.observe import longest, tier2
from utils.validation.report import Check
from utils.validation.representations import (
    check_logit_lens,
    check_outliers,
    check_representations,
    check_weight_ranks,
)
from utils.validation.subject import Subject

SEQUENCES = 4
COPIES = 0.5  # nats: what repetition must gain before it is called copying


@tier2("Copying from what was just read is the first skill of in-context learning; it shows without any data.")
def check_copying(subject: Subject) -> Check:
    """Loss by position on random tokens that come twice: only copying can predict the second time.

    As in Olsson et al. 2022, "In-context learning and induction heads", https://arxiv.org/abs/2209.11895.
    """
    if subject.task not in ("causal", "seq2seq"):
        measured = f"not available, because a {subject.task} model predicts no next token"
        return Check("copying", "skip", measured)
    period = longest(subject) // 2
    if period < 3:
        return Check("copying", "skip", "needs six positions")
    first = subject.tokens(SEQUENCES, period)
    ids = torch.cat([first, first], dim=1)  # (B, 2 * period)
    logits = subject.logits(ids)[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    by_position = losses.view(SEQUENCES, -1).mean(0).cpu()  # (2 * period - 1,)
    # Token `period` starts over, which nothing before it tells; from the one after it, copying can help.
    fresh, again = by_position[: period - 1].mean().item(), by_position[period:].mean().item()
    even = math.log(len(subject.alphabet))
    values = {"first_time": fresh, "second_time": again, "gain": fresh - again, "ln_vocab": even, "period": period}
    figure = {
        "kind": "lines",
        "title": f"Loss by position; from {period} on, the tokens repeat",
        "x_label": "position, tokens",
        "y_label": "loss, nats",
        "series": [
            {"name": "this model", "x": list(range(1, 2 * period)), "y": by_position.tolist()},
            {"name": "guessing evenly, ln(V)", "x": [1, 2 * period - 1], "y": [even, even]},
        ],
    }
    measured = f"loss {fresh:.2f} the first time, {again:.2f} when the same tokens come again"
    if not math.isfinite(fresh + again):
        advice = "Look at the tier-1 findings: some logits are NaN or infinite."
        return Check("copying", "warn", measured, "finite", advice, values=values)
    if fresh - again > COPIES:
        measured += f": it copies, {fresh - again:.2f} nats gained"
    else:
        measured += ": it does not copy. Normal before training, and for models trained on little text"
    return Check("copying", "pass", measured, "for information", values=values, figure=figure)


@tier2("In a BDH few neurons speak at a time, and each can be asked for by its number: that makes it readable.")
def check_neurons(subject: Subject) -> Check | None:
    """Which share of a BDH's neurons is active in each layer, and which speak loudest; None for any other model."""
    model = next((module for module in subject.model.modules() if isinstance(module, BDH)), None)
    if model is None:
        return None
    model.eval()
    ids = subject.tokens(1, longest(subject, 48))
    layers = activations(model, ids, top=4)
    numbers = [layer.layer for layer in layers]
    written = [layer.share_both for layer in layers]
    loudest: dict[int, int] = {}
    for layer in layers:
        for neurons, sizes in zip(layer.neurons, layer.values, strict=True):
            for neuron, size in zip(neurons, sizes, strict=True):
                if size > 0:
                    loudest[neuron] = loudest.get(neuron, 0) + 1
    often = sorted(loudest, key=lambda neuron: (-loudest[neuron], neuron))[:8]
    series = {"read the token (u)": "share_u", "read the past (y)": "share_y", "write (both)": "share_both"}
    values = {
        "share_u": [layer.share_u for layer in layers],
        "share_y": [layer.share_y for layer in layers],
        "share_both": written,
        "often_loudest": often,
        "loudest_of_last_token": [layer.neurons[-1] for layer in layers],
    }
    figure = {
        "kind": "lines",
        "title": "Share of BDH neurons that are active",
        "x_label": "layer",
        "y_label": "share of neurons",
        "series": [
            {"name": name, "x": numbers, "y": [getattr(layer, field) for layer in layers]}
            for name, field in series.items()
        ],
    }
    measured = f"{written[0]:.1%} of the neurons write in the first layer, {written[-1]:.1%} in the last"
    measured += f"; most often loudest: {', '.join(map(str, often[:4]))}" if often else "; none speaks"
    return Check("BDH neurons", "pass", measured, "for information", values=values, figure=figure)


CHECKS = {
    "attention": check_attention,
    "attribution": check_attribution,
    "sensitivity": check_sensitivity,
    "adversarial swap": check_swap,
    "copying": check_copying,
    "logit lens": check_logit_lens,
    "representation rank": check_representations,
    "weight rank": check_weight_ranks,
    "activation outliers": check_outliers,
    "BDH neurons": check_neurons,
}
