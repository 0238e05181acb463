"""How the weights were drawn, and what a model that has learned nothing says. Knows no training.

The recipes: GPT-2 (normal 0.02, Radford et al. 2019), Xavier (Glorot & Bengio 2010), Kaiming (He et al. 2015,
https://arxiv.org/abs/1502.01852), small init (Nguyen & Salazar 2019, https://arxiv.org/abs/1910.05895) and what
torch does when nobody asks.
"""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
from torch import nn

from utils.validation.figures import bars
from utils.validation.report import Check, judged
from utils.validation.subject import Subject, because, first_tensor, loss_of, watching

INIT_LOW, INIT_HIGH, INIT_BROKEN = 0.9, 1.15, 10.0  # of ln V
GROWTH = 1e3  # between the quietest and the loudest layer's output
NEAR = 0.06  # a recipe is recognised when the spread is this near to it, as a ratio
SAMPLE = 200_000  # weights looked at in one tensor: spread and shape are then known to a percent
UNIFORM = 2.2  # kurtosis below which weights look uniform (1.8) rather than normal (3)


@because("Before training a model should know that it knows nothing: a loss of ln V, and layers of like size.")
def check_initialisation(subject: Subject) -> Check:
    """The loss on unpredictable tokens against ln V, how layers' outputs grow, and which recipe drew the weights."""
    batch = 32 if subject.task == "classification" else 4
    length = subject.affordable(128, batch)
    ids, targets = subject.tokens(batch, length), subject.targets(batch, length)
    sizes: dict[str, float] = {}

    def see(name, module, out):
        out = first_tensor(out)
        if out is not None and out.is_floating_point():
            sizes[name] = out.float().square().mean().sqrt().item()

    with watching(subject.layers(), see):
        loss = loss_of(subject.logits(ids), targets).item()
    even = float(np.log(subject.outcomes))
    # Logits of standard deviation s cost s^2 / 2 nats in any vocabulary; 0.8 is s = 1.26, as T5 has by design.
    low, high = INIT_LOW * even, max(INIT_HIGH * even, even + 0.8)
    if subject.task == "classification":  # few answers: luck alone moves the loss further
        low, high = 0.6 * even, even + 0.5
    alive = [size for size in sizes.values() if size > 0]
    growth = max(alive) / min(alive) if alive else 1.0
    recipe = recipes(subject)
    values = {"loss": loss, "ln_vocab": even, "growth": growth, "layers": len(sizes), "recipes": recipe}
    findings = []
    told = f"loss on random tokens {loss:.2f}, guessing evenly costs {even:.2f}"
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
    words = "; ".join(f"{kind}: {words}" for kind, words in recipe.items())
    check = judged("initialisation", findings, good, f"loss in {low:.2f}..{high:.2f} before training", values)
    shown = {name: size if math.isfinite(size) else 0.0 for name, size in sizes.items()}
    figure = bars("Size of each layer's output", shown, "root mean square", log=True) if len(shown) > 1 else None
    return replace(check, measured=f"{check.measured}; how weights look drawn: {words or 'none'}", figure=figure)


def recipes(subject: Subject) -> dict[str, str]:
    """For each kind of layer, the recipe its weights look drawn by, in words: {"linear": "normal 0.02 (GPT-2)"}."""
    layers = subject.layers()
    depth, found, done = max(len(layers), 1), defaultdict(Counter), set()
    inside = {id(module) for _, layer in layers for module in layer.modules()}  # no output layer, whatever its size
    for module in subject.model.modules():
        vocab = 0 if id(module) in inside else subject.vocab_size
        for name, param in module.named_parameters(recurse=False):
            if id(param) not in done and param.numel() and param.is_floating_point():
                done.add(id(param))
                found[_kind(module, name, param, vocab)][_recipe(module, param, depth)] += 1
    return {
        kind: " and ".join(
            (f"{count} x " if len(counts) > 1 else "") + recipe for recipe, count in counts.most_common(3)
        )
        + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")
        for kind, counts in found.items()
    }


def _kind(module: nn.Module, name: str, param: nn.Parameter, vocab: int) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if param.dim() < 2:
        return "biases" if "bias" in name else "gains"
    if param.dim() > 2:
        return "convolutions" if "Conv" in type(module).__name__ else "stacked weights"
    return "output layer" if vocab in param.shape else "linear"


def _recipe(module: nn.Module, param: nn.Parameter, depth: int) -> str:
    flat = param.detach().flatten()
    flat = flat[:: max(1, flat.numel() // SAMPLE)].double()
    if (flat == flat[0]).all():
        return {0.0: "zero", 1.0: "one"}.get(flat[0].item(), f"all {flat[0].item():.3g}")
    std = flat.square().mean().sqrt().item()
    near = NEAR + 2 / flat.numel() ** 0.5
    if param.dim() < 2:
        return "drawn or learned"
    uniform = (flat**4).mean().item() / std**4 < UNIFORM
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(param)
    if type(module).__name__ == "Conv1D":  # transformers' GPT-2 stores (in, out)
        fan_in, fan_out = fan_out, fan_in
    if isinstance(module, nn.Embedding):
        fan_in = param.shape[1]
    known = {
        "0.02 (GPT-2)": 0.02,
        f"0.02 / sqrt(2 x {depth}) (GPT-2, into the residual stream)": 0.02 / math.sqrt(2 * depth),
        "1 (torch's default)": 1.0 if isinstance(module, nn.Embedding) else math.nan,
        "torch's default": math.sqrt(1 / (3 * fan_in)) if uniform else math.nan,
        "Xavier": math.sqrt(2 / (fan_in + fan_out)),
        "Kaiming": math.sqrt(2 / fan_in),
        "1 / sqrt(fan-in)": math.sqrt(1 / fan_in),
        "small init, sqrt(2 / 5 fan-in)": math.sqrt(2 / (5 * fan_in)),
        "small init / sqrt(2 x depth)": math.sqrt(2 / (5 * fan_in) / (2 * depth)),
    }
    apart = {name: abs(math.log(std / want)) for name, want in known.items() if want > 0}
    name = min(apart, key=apart.get)
    shape = "uniform" if uniform else "normal"
    return f"{shape} {name}" if apart[name] < near else f"{shape} of std {std:.1g} (no known recipe, or trained)"
