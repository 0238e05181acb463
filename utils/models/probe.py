"""What a stranger's model takes, gives and allows, found by running it on a few tokens; judges no numbers.

Runs on a copy on the CPU in float32, so that the model stays as it is and an id out of range is only an exception.
B sequences, T positions, V = vocabulary, C = width of the embedding.
"""

import copy
import inspect
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.models.calling import (
    INTERMEDIATE,
    LABELS,
    MASK_STYLES,
    Call,
    Lookups,
    Output,
    call_of,
    forward_line,
    output_of,
    source_file,
)
from utils.models.export_class import LENGTH, VOCABULARY, Settings, flatten, line_of, number_in, told
from utils.models.findings import ExportError, Finding

TASKS = ("causal", "masked", "seq2seq", "classification")
LONGEST = 2048  # positions tried; a longer promise is believed
SECONDS = 2.0  # for trying lengths
UNLIMITED = 1024  # block_size of a model that has no limit and says none
MOVED = 1e-5  # of the logits' spread: float32 noise stays below
HINTS = (  # a word of the config or of the class's name, in this order -> the task it speaks for
    ("seq2seq", r"encoder[-_ ]?decoder|seq2seq|sequence[-_ ]to|\bt5|bart\b|translat|conditionalgeneration"),
    ("classification", r"classif|sentiment"),
    ("masked", r"masked|mlm|bert|(?<!auto)encoder|bidirectional"),
    ("causal", r"causal|decoder|gpt|llama|mistral|auto[-_ ]?regressive|next[-_ ]token|language[-_ ]?model|\blm\b"),
)
HINT_KEYS = ("task", "task_type", "architecture", "architectures", "model_type", "type", "class_name", "model_name")


@dataclass
class Probe:
    """A model under the probe, and what has been found."""

    model: nn.Module
    call: Call
    file: str
    path: str
    output: Output = field(default_factory=Output)
    task: str = "causal"
    vocab_size: int = 0
    block_size: int = 0
    masks: bool = False
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def run(self, ids: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """Whatever the model returns."""
        torch.default_generator.manual_seed(0)  # some code drops activations even in eval mode
        with torch.no_grad():
            return self.call(self.model, ids, target, mask)

    def logits(self, ids: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The scores alone, as float32."""
        return self.output.read(self.run(ids, target, mask))[0].float()

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


def probe(model: nn.Module, config: Mapping[str, Any], task: str | None = None) -> Probe:
    """Find out how a model is called, what it returns, which task it fits, and its limits.

    Raises ExportError with findings where it cannot be used, ValueError for an unknown task.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task={task} is not known: choose one of {', '.join(TASKS)}")
    model = getattr(model, "_orig_mod", model)  # compiled: every new length would compile again
    flat, path = flatten(config), source_file(model)
    found = Probe(model, Call(""), Path(path).name or "model.py", path)
    call, unknown, optional = call_of(model)
    if call is None:
        raise _uncallable(found, unknown)
    if guessed := [name for name in optional if re.search(r"\d", name)]:
        found.warn("forward-takes-intermediates", f"forward takes {', '.join(guessed)}, which get no value")
    found.call = call
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=[]):
            length, ids, output, lookups = _first_run(found, model, flat)
            _read_vocabulary(found, flat, ids, output, lookups, task)
            _decide_task(found, flat, length, task)
            _find_length(found, flat, length)
            found.masks = _try_mask(found, min(length, found.block_size))
    finally:
        for module, training in modes:  # for a model that cannot be copied
            module.training = training
    return found


def _first_run(found: Probe, model: nn.Module, flat: Settings) -> tuple[int, Tensor, Any, Lookups]:
    """The first length and form of a call that works."""
    hint = number_in(flat, LENGTH)
    lengths = [min(8, hint or 8), *([hint] if 8 < hint <= LONGEST else []), 2]
    call, first = found.call, None
    calls = [call]
    if call.mask in call.nothing:
        calls += [replace(call, mask_style=style, always_mask=True) for style in MASK_STYLES]
    half = any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())
    for as_float in (True, False) if half else (True,):  # some code insists on the type it was written for
        found.model = _copied(model, as_float)
        for length in lengths:
            ids = torch.tensor([1, 2, 3, 1, 3, 2, 2]).repeat(2 * length)[: 2 * length].view(2, length)
            for found.call in calls:
                lookups = Lookups()
                try:
                    with lookups:
                        output = found.run(ids)
                except Exception as error:  # a stranger's code: whatever it raises is the finding
                    first = first or error
                    continue
                if length > 8:
                    found.warn("fixed-length", f"it fails at 8 tokens and works at {length}: {told(first)}",
                               "use only as many positions as there are tokens")  # fmt: skip
                if none := [n for n in found.call.nothing if not (found.call.always_mask and n == found.call.mask)]:
                    found.notes.append(f"forward gets None for {', '.join(none)}")
                return length, ids, output, lookups
    raise _run_failure(found, first)


def _read_vocabulary(
    found: Probe, flat: Settings, ids: Tensor, output: Any, lookups: Lookups, task: str | None
) -> None:
    """Where the logits are, and which ids can be both read and predicted."""
    ours = ids.flatten().sort().values
    tables = [(rows, width) for rows, width, numbers in lookups.found
              if numbers.numel() == ids.numel() and torch.equal(numbers.flatten().sort().values, ours)]  # fmt: skip
    promised, rows = number_in(flat, VOCABULARY), min((rows for rows, _ in tables), default=0)
    widths = {width for _, width in tables} | {number_in(flat, ("d_model",))} - {0}
    sizes = {size for size in (rows, promised) if size}
    where = output_of(found.model, output, sizes, tables[0][1] if tables else 0)
    if where is None:
        kind = type(output).__name__
        raise found.failure("no-logits", f"forward returns a {kind} in which nothing is a score",
                            "return the logits (B, T, V), or a dict with logits")  # fmt: skip
    found.output = where
    logits = where.read(output)[0]
    batch, length = ids.shape
    shape, size = tuple(logits.shape), logits.shape[-1]
    if length > 1 and (shape[:-1] == (batch, 1) or (shape[:-1] == (batch,) and size in sizes)):
        shape = _score_every_position(found, ids, size) or shape
    if found.output.kind != "tensor":
        found.notes.append(f"forward returns more than logits ({found.output.kind}); they are {found.output.key!r}")
    if found.output.auxiliary:
        found.notes.append(f"auxiliary loss: {', '.join(map(str, found.output.auxiliary))}")

    if len(shape) == 2 and shape[0] == batch and (task == "classification" or size not in sizes):
        found.task, found.vocab_size = "classification", rows or promised
        _try_last_id(found, ids)
        return
    if shape[:-1] not in ((batch, length), (batch, 1), (batch,)):
        raise found.failure("output-shape", f"for ids (2, {length}) it returns {shape}, expected (2, {length}, V)",
                            "put batch first, then positions, then the vocabulary")  # fmt: skip
    if size in widths and size not in sizes:
        raise found.failure(
            "no-output-head", f"forward returns hidden states {shape}, as wide as the embedding, not scores over "
            f"the {rows or promised} tokens", "end forward with a linear layer from the width to vocab_size",
        )  # fmt: skip
    usable = min(rows or size, size)
    told_sizes = f"the embedding has {rows or 'unknown'} rows, the output scores {size} tokens"
    if promised > usable or (not promised and max(rows, size) > 2 * usable):
        promise = f"config.json says {promised} tokens, but " if promised else ""
        verb = "scored" if size == usable else "read"
        raise found.failure("vocabulary-mismatch", f"{promise}{told_sizes}: ids from {usable} on cannot be {verb}",
                            "make vocab_size, the embedding and the output layer agree")  # fmt: skip
    if rows and rows != size:
        found.warn("vocabulary-mismatch", f"{told_sizes}: only ids below {usable} are used", "make both equal")
    elif promised and promised != usable:
        found.notes.append(f"config says {promised} tokens; {told_sizes} (padded)")
    found.vocab_size = usable
    _try_last_id(found, ids)


def _score_every_position(found: Probe, ids: Tensor, size: int) -> tuple[int, ...] | None:
    """Some models score only the last position unless they are given labels: then the ids are the labels."""
    for name in inspect.signature(found.model.forward).parameters:
        if name not in LABELS:
            continue
        call = replace(found.call, echo=name)
        try:
            with torch.no_grad():
                output = call(found.model, ids)
            where = output_of(found.model, output, {size}, 0)
            logits = where.read(output)[0] if where else ids
        except Exception:  # a stranger's code: then it has to be called without
            continue
        if tuple(logits.shape) == (*ids.shape, size) and where:
            found.call, found.output = call, where
            found.notes.append(f"forward gets the ids as {name}: without, it scores only the last position")
            return tuple(logits.shape)
    found.warn("scores-one-position", "forward scores only the last position, so training learns one token per text",
               "apply the output layer to every position")  # fmt: skip
    return None


def _try_last_id(found: Probe, ids: Tensor) -> None:
    last = torch.full_like(ids, max(found.vocab_size - 1, 0))
    try:
        found.run(last)
    except Exception as error:  # a stranger's code: whatever it raises is the finding
        raise found.failure(
            "vocabulary-mismatch", f"id {found.vocab_size - 1}, the last of the vocabulary, fails: {told(error)}",
            "make vocab_size and the embedding agree", line_of(error, found.path) or None,
        ) from error  # fmt: skip


def _decide_task(found: Probe, flat: Settings, length: int, asked: str | None) -> None:
    words = [type(found.model).__name__]
    words += [str(flat[key]) for key in HINT_KEYS if isinstance(flat.get(key), str | list)]
    hint = next((task for task, pattern in HINTS if re.search(pattern, " ".join(words), re.IGNORECASE)), "")
    if flat.get("is_decoder") is True and not flat.get("is_encoder_decoder"):
        hint = "causal"
    if asked or found.call.target or found.task == "classification":
        found.task = asked or ("seq2seq" if found.call.target else found.task)
        found.notes.append(f"task {found.task}: " + ("asked for" if asked else "by what forward takes and returns"))
        if found.task in ("masked", "classification"):
            return
    seen = _looks_ahead(found, length)
    saw = {True: "earlier logits see later tokens", False: "no logit sees a later token", None: "no token sees another"}
    if asked or found.call.target:
        if seen:
            found.warn("looks-ahead", f"the task is {found.task}, but {saw[True]}", "mask the attention of the decoder")
        return
    if seen is None:
        found.task = hint if hint in ("causal", "masked") else "causal"
        found.notes.append(f"task {found.task}: {saw[None]} yet, so by the names alone")
    elif seen and hint == "causal":
        found.task = "causal"
        found.notes.append(f"task causal: the names say so, but {saw[True]}")
        found.warn("looks-ahead", f"it is a decoder by name, but {saw[True]}", "give the attention a causal mask")
    else:
        found.task = "masked" if seen else "causal"
        against = f", although the names say {hint}" if hint not in ("", found.task) else ""
        found.notes.append(f"task {found.task}: {saw[seen]}{against}")


def _looks_ahead(found: Probe, length: int) -> bool | None:
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


def _find_length(found: Probe, flat: Settings, works_at: int) -> None:
    """The longest input: what the config promises if that runs, else where it really stops."""
    promised, tried, cost = number_in(flat, LENGTH), {works_at: True}, {works_at: 0.0}

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


def _try_mask(found: Probe, length: int) -> bool:
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


def _copied(model: nn.Module, as_float: bool) -> nn.Module:
    try:
        twin = copy.deepcopy(model).to("cpu")
    except Exception:  # a stranger's class: a cached activation, a lock or a generator refuses
        return model.eval()
    return twin.float().eval() if as_float else twin.eval()


def _uncallable(found: Probe, unknown: list[str]) -> ExportError:
    if not unknown:
        return found.failure("forward-arguments", "forward takes no token ids", "name its argument input_ids")
    given = ", ".join(unknown)
    if any(INTERMEDIATE.match(name) for name in unknown):
        return found.failure(
            "forward-takes-intermediates", f"forward requires {given}: results of its own layers, which nobody "
            "outside can know", "compute them inside forward; it should need token ids alone",
        )  # fmt: skip
    return found.failure("forward-arguments", f"forward requires {given}, which nobody outside can know",
                         "give them defaults; it should need token ids alone")  # fmt: skip


def _run_failure(found: Probe, error: Exception | None) -> ExportError:
    assert error is not None
    line = line_of(error, found.path) or None
    if isinstance(error, NameError):  # UnboundLocalError is one
        return found.failure("undefined-name", f"forward raises {told(error)}", "assign it before it is used", line)
    if found.call.nothing and (isinstance(error, TypeError) or "NoneType" in str(error)):
        given = ", ".join(found.call.nothing)
        return found.failure("forward-arguments", f"forward requires {given} and fails with None: {told(error)}",
                             "give it a default of None", line)  # fmt: skip
    return found.failure("forward-fails", f"forward raises {told(error)} for ids (2, 8)", "open that line", line)
