"""Which tokens a prediction rests on: integrated gradients, and swaps of tokens, random and chosen by gradient.

B sequences, T tokens, C channels, V = vocabulary, K = classes. Knows no text: sequences are random ids.
"""

import statistics
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.validation.figures import bars
from utils.validation.observe import find_embedding, longest, tier2, with_embedding
from utils.validation.report import Check
from utils.validation.subject import Subject

TOKENS = 32  # of the sample
STEPS = 24  # points on the path; Gauss-Legendre, which needs far fewer than evenly spaced ones
GAP = 0.05  # of what was attributed
SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)  # of the tokens that are replaced
DRAWS = 4  # random orders in which they are replaced
CANDIDATES, TRIED = 64, 8  # tokens that a swap may bring in; how many of the most promising swaps are run
NOTHING = 1e-5  # nats; what rounding does
NO_EMBEDDING = (
    "not available, because no embedding of the input ids was seen: tokens must be looked up with nn.Embedding or "
    "F.embedding"
)


def readout(subject: Subject, logits: Tensor) -> Tensor:
    """The scores (B, V or K) that are explained: of the last token, of the middle one where all see all, of classes."""
    if logits.dim() == 2:
        return logits
    return logits[:, logits.shape[1] // 2 if subject.task == "masked" else -1]


def integrated_gradients(score: Callable[[Tensor], Tensor], value: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """How much each entry of `value` adds to a score, compared with `base`.

    Sundararajan, Taly & Yan 2017, https://arxiv.org/abs/1703.01365.

    Args:
        score: maps a tensor like `value` to a scalar, differentiably.
        value: where the score is explained.
        base: what stands for "nothing", of the same shape.

    Returns:
        The attribution of every entry, and how far their sum is from score(value) - score(base), as a share of all
        that was attributed: 0 when the path was walked finely enough.
    """
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    total = torch.zeros_like(value)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (base + (value - base) * float(node)).detach().requires_grad_()
        with torch.enable_grad():
            slope = torch.autograd.grad(score(point), point, allow_unused=True)[0]
        if slope is not None:
            total += float(weight) * slope.detach()
    given = total * (value - base)
    with torch.no_grad():
        change = (score(value) - score(base)).item()
    size = max(given.abs().sum().item(), abs(change), 1e-12)
    return given, abs(given.sum().item() - change) / size


@tier2("A prediction should rest on the tokens it ought to: shows how far back the model really looks.")
def check_attribution(subject: Subject) -> Check:
    """Integrated gradients of the most likely answer on a random sequence, from the mean embedding to the real one."""
    length = longest(subject, TOKENS)
    if length < 2:
        return Check("attribution", "skip", "needs two positions")
    ids = subject.tokens(1, length)
    found = find_embedding(subject, ids)
    if found.value is None or found.table is None:
        return Check("attribution", "skip", NO_EMBEDDING)
    scores = readout(subject, subject.logits(ids))[0]
    best = int(scores.argmax())
    value = found.value.float()
    base = found.table.detach().float().mean(0).expand_as(value)

    def score(embedded: Tensor) -> Tensor:
        logits = readout(subject, with_embedding(subject, ids, embedded))[0]
        return logits[best] - logits.mean()  # softmax does not see a shift of all logits

    given, gap = integrated_gradients(score, value, base)
    per_token = given.sum(-1)[0].cpu()  # (T,)
    whole = per_token.abs().sum().item()
    added = {str(place): amount for place, amount in enumerate(per_token.tolist())}
    figure = bars(f"What each token adds to the score of answer {best}", added, "added to the score")
    values = {"gap": gap, "answer": best, "ids": ids[0].tolist(), "added": per_token.tolist()}
    threshold = f"the parts sum to the whole within {GAP:.0%}"
    if not np.isfinite(whole):
        advice = "Look at the tier-1 findings: a gradient or a logit is NaN or infinite."
        return Check("attribution", "warn", "the attribution is not finite", threshold, advice, values=values)
    if whole == 0:
        measured = "no token changes the answer's score: right where the output layer starts at zero"
        return Check("attribution", "pass", measured, threshold, values=values)
    share = per_token.abs() / whole
    top = int(share.argmax())
    near = share[-4:].sum().item()
    values |= {"largest_share": share[top].item(), "largest_at": top, "last_four_share": near}
    measured = f"token {top} of 0..{length - 1} counts most ({share[top]:.0%}), the last four together {near:.0%}"
    measured += f"; the parts sum to the whole within {gap:.1%}"
    if gap <= GAP:
        return Check("attribution", "pass", measured, threshold, values=values, figure=figure)
    advice = (
        f"{STEPS} points on the path are too few for a function this rough: read the bars as an order, not as amounts. "
        "Very large weights, hard switches (top-k, rounding) and ReLUs without norms do this."
    )
    return Check("attribution", "warn", measured, threshold, advice, values=values, figure=figure)


@tier2("Robust models bend when a few tokens change; one that flips all its predictions leans on single tokens.")
def check_sensitivity(subject: Subject) -> Check:
    """How the predictions after (or around) replaced tokens move, by the share that is replaced."""
    length = longest(subject)
    if length < 4:
        return Check("sensitivity", "skip", "needs four positions")
    ids = subject.tokens(1, length)
    base = _by_position(subject, ids)
    orders = [torch.randperm(length, generator=subject.generator).to(ids.device) for _ in range(DRAWS)]
    others = [subject.other(ids) for _ in range(DRAWS)]
    percent, moved, flipped = [], [], []
    for share in SHARES:
        count = max(1, round(share * length))
        if percent and round(100 * count / length, 2) <= percent[-1]:
            continue  # in a short sequence, one token is more than the smallest shares
        divergences, flips = [], []
        for order, other in zip(orders, others, strict=True):
            places = order[:count]  # a larger share replaces the same tokens, and more
            changed = ids.clone()
            changed[:, places] = other[:, places]
            judged = torch.ones(length, dtype=torch.bool, device=ids.device)
            judged[places] = False  # a token that was replaced is itself another question
            if subject.task in ("causal", "seq2seq"):
                judged[: places.min()] = False
            if subject.task == "classification":
                judged = torch.ones(1, dtype=torch.bool, device=ids.device)
            if judged.any():
                logits = _by_position(subject, changed)
                divergences.append(divergence(base[judged], logits[judged]).mean().item())
                flips.append((base[judged].argmax(-1) != logits[judged].argmax(-1)).float().mean().item())
        if divergences:
            percent.append(round(100 * count / length, 2))
            moved.append(statistics.fmean(divergences))
            flipped.append(statistics.fmean(flips))
    if not percent:
        return Check("sensitivity", "skip", "no position was left to look at")
    values = {"percent": percent, "kl": moved, "top1_changed": flipped}
    figure = {
        "kind": "lines",
        "title": "How predictions move when random tokens are replaced",
        "x_label": "tokens replaced, %",
        "y_label": "nats, or share",
        "log_x": True,
        "series": [
            {"name": "KL divergence, nats", "x": percent, "y": moved},
            {"name": "best guess changed, share", "x": percent, "y": flipped},
        ],
    }
    where = {"causal": "later best guesses", "seq2seq": "later best guesses", "masked": "other best guesses"}
    judged_on = where.get(subject.task, "best guesses")
    measured = (
        f"replacing {percent[0]:.3g} % of the tokens changes {flipped[0]:.0%} of the {judged_on} "
        f"(KL {moved[0]:.2g} nats), replacing {percent[-1]:.3g} % changes {flipped[-1]:.0%} (KL {moved[-1]:.2g})"
    )
    if not np.isfinite(moved).all():
        advice = "Look at the tier-1 findings: some logits are NaN or infinite."
        return Check("sensitivity", "warn", measured, "finite numbers", advice, values=values)
    return Check("sensitivity", "pass", measured, "finite numbers", values=values, figure=figure)


def divergence(base: Tensor, other: Tensor) -> Tensor:
    """KL(base || other) in nats of the last axis's distributions, from logits."""
    base, other = base.double().log_softmax(-1), other.double().log_softmax(-1)
    return F.kl_div(other, base, log_target=True, reduction="none").sum(-1).clamp_min(0)  # rounding goes below zero


def _by_position(subject: Subject, ids: Tensor) -> Tensor:
    """Logits of one sequence, (T, V); of a classifier, (1, K)."""
    logits = subject.logits(ids)
    return logits if logits.dim() == 2 else logits[0]


@tier2("How much one badly chosen token can do: the distance between typical and worst is a model's weak spot.")
def check_swap(subject: Subject) -> Check:
    """The single swap that the gradient promises most of, against random swaps.

    First-order choice of a swap: Ebrahimi et al. 2018, HotFlip, https://arxiv.org/abs/1712.06751.
    """
    length = longest(subject, TOKENS)
    if length < 3:
        return Check("adversarial swap", "skip", "needs three positions")
    ids = subject.tokens(1, length)
    found = find_embedding(subject, ids)
    if found.value is None or found.table is None:
        return Check("adversarial swap", "skip", NO_EMBEDDING)
    kept = readout_place(subject, length)
    places = [place for place in range(length) if place != kept]
    embedded = found.value.float().requires_grad_()
    before = readout(subject, with_embedding(subject, ids, embedded))
    with torch.enable_grad():
        loss = F.cross_entropy(before, before.argmax(-1))  # how unlikely the best guess is
        slope = torch.autograd.grad(loss, embedded, allow_unused=True)[0] if loss.requires_grad else None
    if slope is None:
        return Check("adversarial swap", "skip", "not available, because no gradient reaches the embedding")
    draws = torch.randperm(len(subject.alphabet), generator=subject.generator)[:CANDIDATES]
    tokens = subject.alphabet[draws].to(ids.device)
    table = found.table.detach().float()[tokens]  # (N, C)
    # To first order, a swap changes the loss by slope * (new - old); the old part is the same for a whole place.
    promise = slope[0] @ table.T - (slope[0] * found.value.float()[0]).sum(-1, keepdim=True)  # (T, N)
    promise[ids[0][:, None] == tokens] = -torch.inf
    if kept is not None:
        promise[kept] = -torch.inf
    order = torch.nan_to_num(promise.flatten(), nan=-torch.inf).argsort(descending=True)[:TRIED]
    chosen = [(int(i) // len(tokens), int(tokens[int(i) % len(tokens)])) for i in order]
    pick = torch.randint(len(places), (2 * TRIED,), generator=subject.generator).tolist()
    other = [int(subject.other(ids[:, places[i]])) for i in pick]
    before = before.detach()

    def effect(place: int, token: int) -> float:
        changed = ids.clone()
        changed[0, place] = token
        return divergence(before, readout(subject, subject.logits(changed))).item()

    drawn = [(places[i], token) for i, token in zip(pick, other, strict=True)]
    by_chance, by_slope = [effect(*swap) for swap in drawn], [effect(*swap) for swap in chosen]
    typical, luckiest, best = statistics.median(by_chance), max(by_chance), max(by_slope)
    worst = max(luckiest, best)
    place, token = (chosen + drawn)[(by_slope + by_chance).index(worst)]
    values = {
        "worst_kl": worst, "chosen_kl": best, "random_kl": typical, "random_largest_kl": luckiest, "place": place,
        "from": int(ids[0, place]), "to": token, "ratio": worst / typical if typical > 0 else None,
    }  # fmt: skip
    kinds = {"random, typical": typical, "random, largest of 16": luckiest, "chosen by gradient": best}
    figure = bars("What one swapped token does to the prediction", kinds, "KL divergence, nats")
    measured = f"a random swap moves the prediction by {typical:.2g} nats"
    if worst < NOTHING:
        measured += ", the worst found by no more: the model looks at no other token (yet)"
    else:
        measured += f"; the worst found, token {place} to id {token}, by {worst:.2g}"
        measured += f", {worst / typical:,.1f} times as much" if typical > NOTHING else ""
    return Check("adversarial swap", "pass", measured, "for information", values=values, figure=figure)


def readout_place(subject: Subject, length: int) -> int | None:
    """The position that `readout` reads and that a swap must leave alone; None of a classifier."""
    if subject.task == "classification":
        return None
    return length // 2 if subject.task == "masked" else length - 1
