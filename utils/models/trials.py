"""What a model does when it runs: its limits, what it sees, what its masks mean; knows no config and no source text.

B sequences, T positions, V = vocabulary.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from utils.models.calling import CAUSAL_STYLES, MASK_STYLES, Call, forward_line
from utils.models.findings import ExportError, Finding
from utils.models.outputs import Output

LONGEST = 2048  # positions tried; a longer promise is believed
SECONDS = 2.0  # for trying lengths
UNLIMITED = 1024  # block_size of a model that has no limit and says none
MOVED = 1e-5  # of the logits' spread: float32 noise stays below


@dataclass
class Probe:
    """A model under the probe, and what has been found."""

    model: nn.Module
    call: Call
    file: str
    path: str
    output: Output = field(default_factory=Output)
    training_output: Output = field(default_factory=Output)
    task: str = "causal"
    vocab_size: int = 0
    block_size: int = 0
    n_classes: int = 0  # of a text, where it is given one
    masks: bool = False
    changes_ids: bool = False
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def run(self, ids: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """Whatever the model returns."""
        torch.default_generator.manual_seed(0)  # some code drops activations even in eval mode
        given = ids.clone()
        with torch.no_grad():
            output = self.call(self.model, given, target, mask)
        self.changes_ids |= not torch.equal(ids, given)
        return output

    def logits(self, ids: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The scores alone, as float32."""
        return self.output.read(self.run(ids, target, mask), self.model, len(ids))[0].float()

    def draw(self, batch: int, length: int, seed: int = 0) -> Tensor:
        """Ids (batch, length); never 0, which is often padding."""
        generator = torch.Generator().manual_seed(seed)
        low = 1 if self.vocab_size > 1 else 0
        return torch.randint(low, max(self.vocab_size, low + 1), (batch, length), generator=generator)

    def warn(self, code: str, message: str, fix: str = "") -> None:
        """Something to look at that does not stop the model from working."""
        self.findings.append(Finding(code, message, fix, self.file, forward_line(self.model), "warn"))

    def failure(self, code: str, message: str, fix: str = "", line: int | None = None) -> ExportError:
        """What stops it; for the caller to raise."""
        at = forward_line(self.model) if line is None else line
        return ExportError([*self.findings, Finding(code, message, fix, self.file, at)])


def looks_ahead(found: Probe, length: int) -> bool | None:
    """Whether a token changes earlier logits; None where it changes no other position's at all."""
    if length < 3:
        return None
    ids, at = found.draw(2, length), length // 2
    source = found.draw(2, length, seed=1) if found.call.target else None
    changed = ids.clone()
    changed[:, at] = ids[:, at] % (found.vocab_size - 1) + 1 if found.vocab_size > 2 else 1 - ids[:, at]
    both = [found.logits(source, x) if source is not None else found.logits(x) for x in (ids, changed)]
    if both[0].dim() != 3 or both[0].shape[1] != length:
        return None
    moved = (both[1] - both[0]).abs().amax(dim=(0, 2)) > MOVED * both[0].std().clamp_min(1e-12)  # (T)
    if moved[:at].any():
        return True
    return False if moved[at + 1 :].any() else None


def find_length(found: Probe, promised: int, works_at: int) -> None:
    """The longest input: what the config promises (0: nothing) if that runs, else where it really stops."""
    tried, cost = {works_at: True}, {works_at: 0.0}

    def runs(length: int) -> bool:
        if length not in tried:
            start, ids = time.perf_counter(), found.draw(1, length)
            try:
                tried[length] = found.logits(ids, ids if found.call.target else None).shape[0] == 1
            except Exception:  # a stranger's code: it stops here, however it says so
                tried[length] = False
            cost[length] = time.perf_counter() - start
        return tried[length]

    def affordable(length: int) -> bool:
        longest = max(n for n, good in tried.items() if good)
        return length in tried or (
            length <= LONGEST and sum(cost.values()) + cost[longest] * max(1, length / longest) < SECONDS
        )

    if works_at == 8 and (bad := [length for length in (1, 7) if not runs(length)]):
        found.warn("some-lengths-fail", f"it works at 8 tokens and fails at {' and '.join(map(str, bad))}: text to be "
                   "continued has any length", "take sizes from the input's shape, for any length")  # fmt: skip
    if promised > 64:
        runs(64)  # what a token costs, before many are tried
    if promised and (not affordable(promised) or runs(promised)):
        found.block_size = promised
        if promised not in tried:
            found.notes.append(f"block_size {promised}: what config.json says, not tried because it would take long")
        else:
            more = affordable(promised + 1) and runs(promised + 1)
            found.notes.append(f"block_size {promised}: what config.json says" + (", no limit found" if more else ""))
        return
    tables = {n for tensor in (*found.model.parameters(), *found.model.buffers()) for n in tensor.shape}
    tables = {n for n in tables if works_at < n < (promised or LONGEST)}
    for size in sorted(tables, reverse=True):
        if affordable(size + 1) and runs(size) and not runs(size + 1):
            good = size
            break
    else:
        good, bad = works_at, promised or 2 * works_at
        while not promised and affordable(bad) and runs(bad):
            good, bad = bad, 2 * bad
        if not promised and bad not in tried:
            found.block_size = UNLIMITED
            found.notes.append(f"block_size {UNLIMITED}: no limit found up to {good} tokens, and the config says none")
            return
        while bad - good > 1 and affordable((good + bad) // 2):
            middle = (good + bad) // 2
            good, bad = (middle, bad) if runs(middle) else (good, middle)
    found.block_size = good
    found.notes.append(f"block_size {good}: it fails at {good + 1} tokens")
    if promised:
        found.warn("positions-stop-short", f"config.json promises {promised} tokens, but it fails beyond {good}",
                   f"give the positions {promised} rows, or set the length in config.json to {good}")  # fmt: skip


def try_mask(found: Probe, length: int) -> bool:
    """Whether a padding mask means what it should: all ones change nothing, and what is masked has no influence."""
    call = found.call
    if not call.mask or call.echo or length < 4:
        return False
    ids, padding = found.draw(2, length, seed=2), slice(0, length // 3)
    if found.task == "classification":  # the first position may be the one that is scored
        padding = slice(length - length // 3, length)
    target = found.draw(2, length - 1, seed=3) if call.target else None
    other = ids.clone()
    other[1, padding] = ids[1, padding] % max(found.vocab_size - 1, 1) + (found.vocab_size > 1)
    mask = torch.ones_like(ids)
    mask[1, padding] = 0
    for style in MASK_STYLES if not call.always_mask else [call.mask_style]:
        found.call = replace(call, mask_style=style)
        try:
            plain, whole = found.logits(ids, target), found.logits(ids, target, torch.ones_like(ids))
            left, right = found.logits(ids, target, mask), found.logits(other, target, mask)
        except Exception:  # a stranger's code: this is not how it wants its mask
            continue
        if not found.call.target and found.task != "classification":  # what padding itself scores is nobody's matter
            left, right = left[:, padding.stop :], right[:, padding.stop :]
        near = MOVED * plain.std().clamp_min(1e-12) * 10
        if (whole - plain).abs().max() <= near and left.isfinite().all() and (left - right).abs().max() <= near:
            return True
    found.call = call
    found.notes.append(f"{call.mask} is left out: it does not act as a padding mask (B, T)")
    return False


def keep_texts_apart(found: Probe, length: int) -> None:
    """Whether a text changes another's logits in the same batch; if so, perhaps the model takes (T, B)."""

    def mixes() -> bool:
        both = [found.logits(ids, target if found.call.target else None) for ids in (first, other)]
        moved = (both[1][1] - both[0][1]).abs().max() > MOVED * both[0].std().clamp_min(1e-12)
        return bool(moved) or both[0].shape != shape

    if found.vocab_size < 2 or length < 2:
        return
    first, target = found.draw(2, length), found.draw(2, length, seed=1)
    other = first.clone()
    other[0] = (first[0] + 1) % found.vocab_size
    shape = found.logits(first, target if found.call.target else None).shape
    if not mixes():
        return
    call, output = found.call, found.output
    if len(shape) == 3 and output.layout == "BTV":
        found.call, found.output = replace(call, time_first=True), replace(output, layout="TBV")
        try:
            if not mixes():
                found.notes.append("forward takes (T, B): positions first, then texts")
                return
        except Exception:  # a stranger's code: then it is not that
            pass
        found.call, found.output = call, output
    found.warn("mixes-texts", "a text changes the logits of another text in its batch",
               "look for a view or reshape that swaps texts and positions, and for batch_first=True")  # fmt: skip


def give_causal_mask(found: Probe, names: list[str], length: int) -> bool:
    """Whether one of these parameters takes a causal mask after which no logit sees a later token; then it gets one."""
    call = found.call
    for name in names:
        mask = "" if call.mask == name else call.mask
        for style in CAUSAL_STYLES:
            nothing = tuple(other for other in call.nothing if other != name)
            found.call = replace(call, causal=name, causal_style=style, mask=mask, nothing=nothing)
            try:
                ids = found.draw(2, length)
                if found.logits(ids, ids if call.target else None).isfinite().all() and not looks_ahead(found, length):
                    found.notes.append(f"forward gets a causal mask as {name} ({style})")
                    return True
            except Exception:  # a stranger's code: this is not how it wants its mask
                continue
    found.call = call
    return False
