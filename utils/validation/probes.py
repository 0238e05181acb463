"""What a model computes whatever the order: neighbours in the batch, repeats, odd input and coarse numbers.

Runs forward passes only; knows no training, no tokenizer and no files. Shapes: B sequences, T positions, V ids.
"""

from functools import partial

import torch
from torch import nn

from utils.validation.report import Check, judged, named
from utils.validation.subject import Subject, because, locate, relative, watching

LONGEST = 512  # positions used where every extra position only costs time
BATCH_MOVED = 1e-3  # of the logits' scale: another batch size may select other kernels, TF32 among them
HUGE, FP16_MAX = 1e3, 65504.0  # logits of this size deserve a look; beyond the second, float16 overflows
BF16_APART = 0.1  # of the logits' spread


@because("Training averages over unrelated texts: what one text says must not change what another is answered.")
def check_batch(subject: Subject) -> Check:
    """A sequence's logits do not depend on its neighbours in the batch, in either mode."""
    ids = subject.tokens(3, subject.affordable(64, 3))
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
    threshold = f"moves less than {subject.moved:.1g} of the scale"
    say = partial(Check, "batch independence", threshold=threshold, values=values)
    if moved[worst] <= subject.moved:
        rounding = f", up to rounding ({moved[worst]:.0e} of the scale)" if moved[worst] else ""
        return say("pass", f"other sequences in the batch move nothing{rounding}")
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


@because("Evaluation, resuming and debugging all need the same answer to the same question.")
def check_determinism(subject: Subject) -> Check:
    """The same input twice in evaluation mode gives the same logits."""
    ids = subject.tokens(2, subject.affordable(LONGEST, 2))
    moved = relative(subject.logits(ids), subject.logits(ids, reseed=False))
    threshold = f"differ by less than {subject.moved:.1g} of the scale"
    say = partial(Check, "determinism", threshold=threshold, values={"moved": moved})
    if moved <= subject.moved:
        measured = "the same input twice in eval mode: "
        measured += f"logits differ by {moved:.0e} of their scale" if moved else "the same logits"
        return say("pass", measured + _dropout(subject, ids))
    advice = (
        "Something random stays on after model.eval(). F.dropout is on by default: pass "
        "training=self.training, likewise dropout_p=self.p if self.training else 0.0 to "
        "scaled_dot_product_attention; or use nn.Dropout. A state kept between calls (a cache, a hidden "
        "state) does the same."
    )
    measured = f"the same input twice in eval mode: logits differ by {moved:.2g} of their scale"
    return say("fail", measured, advice=advice)


def _dropout(subject: Subject, ids: torch.Tensor) -> str:
    """In words, whether dropout that is declared does anything in training."""
    layers = [m for m in subject.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if not layers:
        return ""
    active = not torch.equal(subject.logits(ids, training=True), subject.logits(ids, training=True, reseed=False))
    state = "active in training only" if active else "declared, but two training passes agree: it is never applied"
    return f"; dropout ({len(layers)} layers) is {state}"


@because("One NaN ends a run for good, and half precision, which training wants, overflows long before fp32.")
def check_stability(subject: Subject) -> Check:
    """Logits stay finite, alive and moderate for random, constant and repeating input, and in bfloat16."""
    length = subject.affordable(LONGEST, 2)
    mixed = subject.tokens(2, length)
    pair = subject.tokens(1, 2)[0]
    inputs = {
        "random": mixed,
        "constant": torch.full_like(mixed, pair[0].item()),
        "repeating": pair[torch.arange(length, device=subject.device) % 2].expand(2, length),
        "lowest id": torch.zeros_like(mixed[:1, :32]),
        "highest id": torch.full_like(mixed[:1, :32], subject.vocab_size - 1),
    }
    sizes: dict[str, float] = {}
    runs = {"random": _watched(subject, mixed, sizes)}
    runs |= {name: subject.logits(ids) for name, ids in inputs.items() if name != "random"}
    findings = []
    broken = [name for name, logits in runs.items() if not torch.isfinite(logits).all()]
    if broken:
        advice = (
            "Divisions and norms need an eps inside the root, and softmax rows must keep at least one open position."
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
    loudest = max(sizes, key=sizes.get, default="")
    values |= {"largest_activation": sizes.get(loudest, 0.0), "loudest": loudest}
    if loudest and sizes[loudest] > FP16_MAX and not broken:
        advice = (
            "In fp16 this becomes infinite: train in bf16 or fp32, or put a norm before that module and draw its "
            "weights smaller."
        )
        findings.append(("warn", f"{loudest} gives {sizes[loudest]:.2g}, beyond fp16's 65504", advice))
    if (logits >= 0).all() and ((logits.sum(-1) - 1).abs() < 1e-3).all():
        advice = (
            "Drop the softmax at the end of forward(): cross-entropy applies its own, and two of them nearly "
            "stop learning."
        )
        findings.append(("fail", "the output is probabilities (every row sums to 1), not logits", advice))
    if not subject.half and not broken:
        findings += _bf16(subject, mixed, logits, values)
    good = f"logits finite for {', '.join(inputs)} input, largest {largest:.2g}, standard deviation {spread:.2g}"
    good += f"; largest activation {sizes[loudest]:.2g} ({loudest}), where fp16 ends at 65,504" if loudest else ""
    good += f"; in bf16 logits change by {values['bf16_apart']:.1%}" if "bf16_apart" in values else ""
    threshold = f"finite, not constant, below {HUGE:,.0f}; bf16 within {BF16_APART:.0%}"
    return judged("stability", findings, good, threshold, values)


def _watched(subject: Subject, ids: torch.Tensor, sizes: dict[str, float]) -> torch.Tensor:
    """The logits, and into `sizes` the largest number each module gave on the way to them."""

    def see(name, module, out):
        if isinstance(out, torch.Tensor) and out.is_floating_point() and out.numel():
            sizes[name] = max(sizes.get(name, 0.0), out.detach().abs().max().item())

    with watching([(name, module) for name, module in subject.model.named_modules() if name], see):
        return subject.logits(ids)


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
    return logits.std(-1).mean().item(), logits.flatten(0, -2).std(0).mean().item()


def _bf16(subject: Subject, ids: torch.Tensor, logits: torch.Tensor, values: dict) -> list:
    try:
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            rough = subject.logits(ids)
    except Exception as error:  # the model's code, or a kernel without bfloat16
        return [("warn", f"fails under bf16 autocast: {locate(error)}", "Train in fp32, or cast at that line.")]
    center = logits - logits.mean(-1, keepdim=True)  # softmax does not see a shift of all logits
    apart = (rough - rough.mean(-1, keepdim=True) - center).square().mean().sqrt()
    values["bf16_apart"] = (apart / center.square().mean().sqrt().clamp_min(1e-12)).item()
    if values["bf16_apart"] <= BF16_APART:
        return []
    advice = "Keep norms, softmax and the residual stream in fp32, or train wholly in fp32."
    return [("warn", f"bf16 logits are {values['bf16_apart']:.0%} away from fp32", advice)]
