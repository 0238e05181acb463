"""What a model computes: checks that only run forward passes, and the private copy they run on.

Knows no training, no tokenizer and no files. A model maps token ids (B, T) to logits (B, T, V).
Shapes: B sequences, T positions, V = vocab_size.
"""

import time
from functools import partial

import torch
from torch import nn

from utils.validation.report import Check, judged, named
from utils.validation.subject import Subject, locate, relative

LONGEST = 512  # positions used where every extra position only costs time
PROBE_SECONDS = 3.0  # a check that repeats itself stops repeating after this long
BATCH_MOVED = 1e-3  # of the logits' scale: another batch size may select other kernels, TF32 among them
HUGE, FP16_MAX = 1e3, 65504.0  # logits of this size deserve a look; beyond the second, float16 overflows
BF16_APART = 0.1  # of the logits' spread


def check_shapes(subject: Subject) -> Check:
    """Logits (B, T, V), floating and finite, for a single token, the full block and lengths between."""
    block = subject.block_size
    cases = sorted({(1, 1), (1, block), (3, min(7, block)), (2, max(1, block // 2))})
    problems, right = [], []
    for batch, length in cases:
        try:
            problem = _shape_problem(subject, batch, length)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the model is a stranger's code: whatever it raises is the finding
            problem = locate(error), _error_advice(error, block)
        if problem:
            problems.append((f"input ({batch}, {length}): {problem[0]}", problem[1]))
        else:
            right.append((batch, length))
    subject.length = max((length for _, length in right), default=0)
    shown = " ".join(f"({batch}, {length})" for batch, length in cases)
    threshold = f"(B, T, {subject.vocab_size}), floating, finite"
    values = {"cases": len(cases), "right": len(right), "longest": subject.length}
    if not problems:
        measured = f"all {len(cases)} inputs (B, T) gave (B, T, V): {shown}"
        return Check("shapes", "pass", measured, threshold, values=values)
    measured = f"{len(problems)} of {len(cases)} inputs failed. {problems[0][0]}"
    return Check("shapes", "fail", measured, threshold, problems[0][1], values=values)


def _shape_problem(subject: Subject, batch: int, length: int) -> tuple[str, str] | None:
    ids, vocab = subject.tokens(batch, length), subject.vocab_size
    subject.model.eval()
    subject.reseed()
    with torch.no_grad():
        out = subject.model(ids)
    want = (batch, length, vocab)
    if not isinstance(out, torch.Tensor):
        kind = type(out).__name__
        return (
            f"returns a {kind}, expected a tensor (B, T, V)",
            f"Return the logits alone from forward(), or wrap the model so that the {kind} is unpacked.",
        )
    got = tuple(out.shape)
    if got != want:
        return f"returned {got}, expected {want}", _shape_advice(got, want)
    if not out.is_floating_point():
        return f"returned {out.dtype}", "Return the scores, before any argmax: training needs a slope."
    if not torch.isfinite(out).all():
        share = 1 - torch.isfinite(out).float().mean().item()
        return (
            f"{share:.0%} of the logits are NaN or infinite; {_first_nonfinite(subject.model, ids)}",
            "Look at that module: a row of attention in which everything is masked, a division by zero, a "
            "square root or logarithm of a negative number, or weights that already hold NaN are the usual causes.",
        )
    return None


def _shape_advice(got: tuple, want: tuple) -> str:
    batch, length, vocab = want
    if got == (batch, vocab, length):
        return "The last two axes are swapped: end forward() with logits.transpose(1, 2), or leave out yours."
    if got == (length, batch, vocab):
        return "Batch and time are swapped: the model expects (T, B). Use batch_first=True, or transpose."
    if got == (batch, vocab):
        return "Only one position is answered. A language model scores every one: drop the [:, -1]."
    if got == (batch * length, vocab):
        return "Batch and time are merged: end with logits.view(B, T, V)."
    if len(got) == 3 and got[:2] == (batch, length):
        return (
            f"The output layer gives {got[2]} scores per position but the vocabulary has {vocab} tokens: "
            "make its out_features equal vocab_size (or pass the padded size, if it is padded on purpose)."
        )
    return "Follow the shapes through forward() to the first that surprises you; the last must be (B, T, V)."


def _error_advice(error: Exception, block: int) -> str:
    if isinstance(error, IndexError) or "out of range" in str(error):
        return (
            "A lookup left its table: the token embedding needs vocab_size rows, position embeddings need "
            f"at least block_size = {block} rows."
        )
    if isinstance(error, TypeError):
        return "forward(input_ids) must work with token ids alone: give other arguments defaults."
    return "Open that line: forward() must work for any batch size and any length up to block_size."


def _first_nonfinite(model: nn.Module, ids: torch.Tensor) -> str:
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            return f"the parameter {name} holds them already"
    found = []

    def watch(name):
        def hook(module, args, out):
            if isinstance(out, torch.Tensor) and not found and not torch.isfinite(out).all():
                found.append(f"first in the output of {name or 'the model itself'} ({type(module).__name__})")

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "no single module is to blame"


def check_batch(subject: Subject) -> Check:
    """A sequence's logits do not depend on its neighbours in the batch, in either mode."""
    ids = subject.tokens(3, min(subject.length, 64))
    others = torch.cat([ids[:1], subject.other(ids[1:])])
    moved = {}
    for mode in ("evaluation", "training")[: min(2, subject.length)]:
        first = subject.logits(ids, mode == "training")[0]
        subject.reset()  # a training pass may have moved running statistics
        moved[mode] = relative(first, subject.logits(others, mode == "training")[0])
        subject.reset()
    base = subject.logits(ids)[0]
    if torch.equal(base, subject.logits(ids, reseed=False)[0]):  # else dropout draws another mask
        alone = relative(base, subject.logits(ids[:1])[0])
        moved["evaluation"] = max(moved["evaluation"], alone if alone > BATCH_MOVED else 0.0)
    worst = max(moved, key=moved.get)
    values = {f"moved_{mode}": amount for mode, amount in moved.items()}
    threshold = f"moves < {subject.moved:.0e} of the scale"
    say = partial(Check, "batch independence", threshold=threshold, values=values)
    if moved[worst] <= subject.moved:
        return say("pass", f"other sequences in the batch move nothing ({moved[worst]:.1e} of the scale)")
    measured = f"other sequences move the logits by {moved[worst]:.2g} of their scale in {worst} mode"
    norms = [n for n, m in subject.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        advice = (
            "Replace BatchNorm by LayerNorm or RMSNorm: it averages over the batch and over future "
            "positions, so training sees what generation cannot."
        )
        return say("fail", f"{measured}; batch normalisation: {named(norms)}", advice=advice)
    if moved["evaluation"] > subject.moved:
        advice = (
            "Something mixes over dimension 0. nn.MultiheadAttention and nn.GRU need batch_first=True for "
            "(B, T, C); check every mean, softmax, view and transpose for the dimension it works on."
        )
        return say("fail", measured, advice=advice)
    advice = (
        "Fine for a mixture of experts with a capacity limit, where sequences compete for places. "
        "Otherwise look for a mean or a norm over dimension 0 that is active in training only."
    )
    return say("warn", measured, advice=advice)


def check_causality(subject: Subject) -> Check:
    """A later token must not move earlier logits; with causal=None it only says which kind this is."""
    length = min(subject.length, LONGEST)
    wanted = {True: "future tokens move nothing", False: "future tokens are seen", None: "reported only"}
    say = partial(Check, "causality", threshold=wanted[subject.causal])
    if length < 2:
        return say("skip", "needs two positions")
    subject.wake()
    ids = subject.tokens(1, length)
    base = subject.logits(ids)
    seen, ahead, amount, tried = length, 0, 0.0, 0
    start = time.perf_counter()
    for place in dict.fromkeys((length - 1, 1, length // 2, length // 4, 3 * length // 4, 2)):
        if not 0 < place < length or (tried > 1 and time.perf_counter() - start > PROBE_SECONDS):
            continue
        moved = _moved_by(subject, ids, base, place)[:place]
        leaks = (moved > subject.moved).nonzero().flatten().tolist()
        tried += 1
        if leaks:
            seen, ahead = min(seen, leaks[0]), max(ahead, place - leaks[0])
            amount = max(amount, moved.max().item())
    values = {"causal": ahead == 0, "sees_ahead": ahead, "moved": amount, "length": length}
    say = partial(say, values=values | {"positions_tried": tried})
    if not ahead:
        measured = f"causal: changing a token at {tried} of {length} positions moved no earlier logits"
        if subject.causal is not False:
            return say("pass", measured)
        advice = (
            "The model was declared bidirectional but looks only back: leave the causal mask out for "
            "masked-token training, or declare it causal."
        )
        return say("warn", measured, advice=advice)
    measured = (
        f"bidirectional: position {seen} is the first that sees a later token, up to {ahead} ahead; logits "
        f"moved by {amount:.2g} of their scale"
    )
    if not subject.causal:
        return say("pass", measured)
    if ahead <= 3 and length > 8:
        advice = (
            f"The mask is off by one: it lets {ahead} token(s) too many through. Position t may see 0..t, "
            "as in torch.tril(torch.ones(T, T)), diagonal=0. A convolution must be padded on the left "
            "only."
        )
    else:
        advice = (
            "The causal mask is missing: use F.scaled_dot_product_attention(q, k, v, is_causal=True), or "
            "set scores above the diagonal to -inf before the softmax. Without it the training loss falls "
            "to nothing, because the answer is in the input, and generation fails. For a BERT-like model "
            "say causal=False."
        )
    return say("fail", measured, advice=advice)


def check_context(subject: Subject) -> Check:
    """Other tokens do matter: a model that sees each token alone cannot learn language."""
    length = min(subject.length, LONGEST)
    say = partial(Check, "context", threshold="earlier tokens move later logits")
    if length < 2:
        return say("skip", "needs two positions")
    subject.wake()
    ids = subject.tokens(1, length)
    base = subject.logits(ids)
    reach, own = 0, True
    for place in dict.fromkeys((0, length // 2, length - 2)):
        moved = _moved_by(subject, ids, base, place) > 0.1 * subject.moved
        own = own and bool(moved[place])
        later = moved[place + 1 :].nonzero().flatten().tolist()
        reach = max(reach, later[-1] + 1 if later else 0)
    say = partial(say, values={"reach": reach, "sees_own_token": own, "length": length})
    if not reach:
        advice = (
            "Each position is treated alone, as in a lookup table. Check that attention (or the "
            "recurrence) is called in forward(), that its result is added to the stream, and that the mask "
            "does not hide the past too."
        )
        return say("fail", f"changing a token moved no later logits (length {length})", advice=advice)
    if not own:
        advice = (
            "The mask hides the diagonal, or the input is shifted inside the model. Labels are shifted by "
            "the trainer, so forward() must not shift."
        )
        return say("warn", "the logits of a position do not depend on its own token", advice=advice)
    return say("pass", f"a token moves logits up to {reach} positions later")


def check_determinism(subject: Subject) -> Check:
    """The same input twice in evaluation mode gives the same logits."""
    ids = subject.tokens(2, min(subject.length, LONGEST))
    moved = relative(subject.logits(ids), subject.logits(ids, reseed=False))
    threshold = f"differs < {subject.moved:.0e} of the scale"
    say = partial(Check, "determinism", threshold=threshold, values={"moved": moved})
    if moved <= subject.moved:
        return say("pass", f"the same input twice in eval mode: logits differ by {moved:.1e}")
    advice = (
        "Something random stays on after model.eval(). F.dropout is on by default: pass "
        "training=self.training, likewise dropout_p=self.p if self.training else 0.0 to "
        "scaled_dot_product_attention; or use nn.Dropout. A state kept between calls (a cache, a hidden "
        "state) does the same."
    )
    measured = f"the same input twice in eval mode: logits differ by {moved:.2g} of their scale"
    return say("fail", measured, advice=advice)


def check_stability(subject: Subject) -> Check:
    """Logits stay finite, alive and moderate for random, constant and repeating input, and in bfloat16."""
    length = min(subject.length, LONGEST)
    mixed = subject.tokens(2, length)
    pair = subject.tokens(1, 2)[0]
    inputs = {
        "random": mixed,
        "constant": torch.full_like(mixed, pair[0].item()),
        "repeating": pair[torch.arange(length, device=subject.device) % 2].expand(2, length),
    }
    runs = {name: subject.logits(ids) for name, ids in inputs.items()}
    findings = []
    broken = [name for name, logits in runs.items() if not torch.isfinite(logits).all()]
    if broken:
        advice = (
            "Divisions and norms need an eps inside the root, and softmax rows must keep at least one open "
            "position."
        )
        findings.append(("fail", f"NaN or infinite logits for {' and '.join(broken)} input", advice))
    logits = runs["random"]
    largest = max(run.abs().max().item() for run in runs.values())
    spread, over_time = _spreads(logits)
    values = {"largest": largest, "std": spread, "std_over_positions": over_time}
    if not broken and _constant(logits):
        findings.append(_collapsed(subject, mixed, spread))
    if largest > HUGE and not broken:
        status = "fail" if largest > FP16_MAX else "warn"
        advice = (
            "Far beyond what softmax needs (tens): scale the output layer down, put a norm before it, and "
            "use std 0.02 for linear layers."
        )
        findings.append((status, f"logits reach {largest:.2g}", advice))
    if (logits >= 0).all() and ((logits.sum(-1) - 1).abs() < 1e-3).all():
        advice = (
            "Drop the softmax at the end of forward(): cross-entropy applies its own, and two of them nearly "
            "stop learning."
        )
        findings.append(("fail", "the output is probabilities (every row sums to 1), not logits", advice))
    if not subject.half and not broken:
        findings += _bf16(subject, mixed, logits, values)
    good = f"logits finite, largest {largest:.2g}, std {spread:.2g}"
    good += f"; bf16 within {values['bf16_apart']:.1%}" if "bf16_apart" in values else ""
    threshold = f"finite, not constant, < {HUGE:.0e}; bf16 within {BF16_APART:.0%}"
    return judged("stability", findings, good, threshold, values)


def _collapsed(subject: Subject, ids: torch.Tensor, spread: float) -> tuple[str, str, str]:
    woken = subject.wake()
    again = subject.logits(ids)
    subject.reset()
    if woken and not _constant(again):
        advice = (
            "Deliberate in muP and ReZero style, and gone after the first steps; if it was not your choice, "
            "initialise the output layer with std 0.02."
        )
        return "warn", "logits are constant because a projection starts at zero", advice
    advice = (
        "The signal dies on its way: look for a product with zero, a saturated activation, or a missing "
        "residual connection."
    )
    return "fail", f"logits hardly depend on the input (std {spread:.1g} over the vocabulary)", advice


def _constant(logits: torch.Tensor) -> bool:
    over_vocabulary, over_positions = _spreads(logits)
    return over_vocabulary < 1e-6 or over_positions < 1e-4 * over_vocabulary


def _spreads(logits: torch.Tensor) -> tuple[float, float]:
    return logits.std(-1).mean().item(), logits.flatten(0, 1).std(0).mean().item()


def _bf16(subject: Subject, ids: torch.Tensor, logits: torch.Tensor, values: dict) -> list:
    try:
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            rough = subject.logits(ids)
    except Exception as error:  # the model's code, or a kernel without bfloat16
        return [
            ("warn", f"fails under bf16 autocast: {locate(error)}", "Train in fp32, or cast at that line.")
        ]
    center = logits - logits.mean(-1, keepdim=True)  # softmax does not see a shift of all logits
    apart = (rough - rough.mean(-1, keepdim=True) - center).square().mean().sqrt()
    values["bf16_apart"] = (apart / center.square().mean().sqrt().clamp_min(1e-12)).item()
    if values["bf16_apart"] <= BF16_APART:
        return []
    advice = "Keep norms, softmax and the residual stream in fp32, or train wholly in fp32."
    return [("warn", f"bf16 logits are {values['bf16_apart']:.0%} away from fp32", advice)]


def _moved_by(subject: Subject, ids: torch.Tensor, base: torch.Tensor, place: int) -> torch.Tensor:
    """How far each position's logits move (T,), in units of their spread, if the token at `place` changes."""
    changed = ids.clone()
    changed[:, place] = subject.other(ids[:, place])
    moved = (subject.logits(changed) - base).abs().amax((0, 2)) / base.std().clamp_min(1e-12)
    return torch.nan_to_num(moved, nan=float("inf"))
