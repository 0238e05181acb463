"""What a stranger's model takes, gives and allows, found by running it on a few tokens; judges no numbers.

Runs on a copy on the CPU in float32, so that the model stays as it is and an id out of range is only an exception.
B sequences, T positions, V = vocabulary, C = width of the embedding.
"""

import copy
import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.models.calling import INTERMEDIATE, LABELS, Call, Lookups, call_of, source_file, ways_of
from utils.models.export_class import line_of, told
from utils.models.export_config import LENGTH, VOCABULARY, Settings, flatten, number_in
from utils.models.findings import ExportError
from utils.models.fixes import likely_fix
from utils.models.outputs import kept_losses, nameless_losses, output_of
from utils.models.trials import (
    LONGEST,
    Probe,
    find_length,
    give_causal_mask,
    keep_texts_apart,
    looks_ahead,
    try_mask,
)
from utils.runtime.randomness import derive_seed

TASKS = ("causal", "masked", "seq2seq", "classification")
HINTS = (  # a word of the config or of the class's name, in this order -> the task it speaks for
    ("seq2seq", r"encoder[-_ ]?decoder|seq2seq|sequence[-_ ]to|\bt5|bart\b|translat|conditionalgeneration"),
    ("classification", r"classif|sentiment"),
    ("masked", r"masked|mlm|bert|(?<!auto)encoder|bidirectional"),
    ("causal", r"causal|decoder|gpt|llama|mistral|auto[-_ ]?regressive|next[-_ ]token|language[-_ ]?model|\blm\b"),
)
HINT_KEYS = ("task", "task_type", "architecture", "architectures", "model_type", "type", "class_name", "model_name")


def probe(model: nn.Module, config: Mapping[str, Any], task: str | None = None, seed: int = 0) -> Probe:
    """Find out how a model is called, what it returns, which task it fits, and its limits.

    Parts that `forward` makes on its first call are made, from `seed`; nothing else of the model changes.
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
            length, ids, output, lookups = _first_run(found, model, flat, seed)
            _read_vocabulary(found, flat, ids, output, lookups, task)
            keep_texts_apart(found, length)
            _decide_task(found, flat, length, task)
            _read_training(found, ids)
            find_length(found, number_in(flat, LENGTH), length)
            found.masks = try_mask(found, min(length, found.block_size))
        if found.changes_ids:
            found.call = replace(found.call, copies=True)
            found.warn("changes-its-input", "forward changes the ids it is given, in place", "begin with x = x.clone()")
    finally:
        for module, training in modes:  # for a model that cannot be copied
            module.training = training
    return found


def _first_run(found: Probe, model: nn.Module, flat: Settings, seed: int) -> tuple[int, Tensor, Any, Lookups]:
    """The first length and form of a call that works."""
    hint = number_in(flat, LENGTH)
    lengths = [min(8, hint or 8), *([hint] if 8 < hint <= LONGEST else []), 2]
    calls, first = list(ways_of(model, found.call)), None
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
                if not as_float:
                    found.warn("fixed-dtype", f"it runs only in the dtype it was written in: {told(first)}",
                               "leave dtypes out of forward; how precisely to train is a setting")  # fmt: skip
                _finish_parts(found, model, ids, as_float, seed)
                return length, ids, output, lookups
    found.call = calls[0]
    raise _run_failure(found, first)


def _finish_parts(found: Probe, model: nn.Module, ids: Tensor, as_float: bool, seed: int) -> None:
    """Lazy layers and layers made inside `forward` have weights only after a first call, which they get here."""
    late = {name for name, _ in found.model.named_parameters()} - {
        name for name, p in model.named_parameters() if not nn.parameter.is_lazy(p)
    }
    if late and found.model is not model:
        found.notes.append(f"called once, because forward makes {', '.join(sorted(late))}")
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        with torch.no_grad():
            found.call(model.eval(), ids)
        found.model = _copied(model, as_float)


def _read_training(found: Probe, ids: Tensor) -> None:
    """Where the logits are in training, when some code returns something else."""
    found.training_output = found.output
    if found.model.training:  # it could not be copied, and stays as it is
        return
    fix = "return the same in training as in evaluation: the logits; the loss is computed outside"
    shape = found.logits(ids).shape
    found.model.train()
    try:
        with torch.enable_grad():
            output = found.call(found.model, ids.clone())
    except Exception as error:  # a stranger's code: whatever it raises is the finding
        at = line_of(error, found.path) or None
        raise found.failure("training-fails", f"forward raises {told(error)} in training", fix, at) from error
    finally:
        found.model.eval()
    where = output_of(found.model, output, {shape[-1]}, 0)
    if where is not None:
        kept = () if where.auxiliary else tuple(kept_losses(found.model))
        where = replace(where, layout=found.output.layout, kept=kept)
        try:
            got = tuple(where.read(output, found.model, len(ids))[0].shape)
        except (RuntimeError, IndexError):  # too few axes for that layout
            got = ()
    if where is None or got[-1:] != shape[-1:] or len(got) != len(shape):
        raise found.failure("training-fails", "in training, forward returns no logits", fix)
    found.training_output, found.output = where, replace(found.output, kept=where.kept)
    logits = where.read(output, found.model, len(ids))[0]
    if not logits.requires_grad and any(p.requires_grad for p in found.model.parameters()):
        found.warn("no-gradient", "the logits of training have no gradient, so nothing can be learned",
                   "leave torch.no_grad, detach and .data out of forward")  # fmt: skip
    if losses := [*where.auxiliary, *(".".join(filter(None, place)) for place in where.kept)]:
        found.notes.append(f"auxiliary loss: {', '.join(map(str, losses))}")
    elif not found.call.echo and (unnamed := nameless_losses(output, where)):
        found.notes.append(f"the number returned at {unnamed[0]!r} is left out: call it aux_loss to have it trained on")


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
        raise found.failure("no-logits", _without_scores(output),
                            "return the logits (B, T, V), or a dict with logits")  # fmt: skip
    batch, length = ids.shape
    shape = tuple(where.read(output, found.model, batch)[0].shape)
    if len(shape) == 3 and shape[-1] == length and shape[1] in sizes and shape[-1] not in sizes:
        where = replace(where, layout="BVT")
    elif len(shape) == 2 and shape[0] == batch * length and shape[1] in sizes:
        where = replace(where, layout="NV")
    found.output = where
    if where.layout != "BTV":
        found.notes.append(f"forward returns its scores as {shape} for ids {tuple(ids.shape)}; they are rearranged")
    logits = where.read(output, found.model, batch)[0]
    shape, size = tuple(logits.shape), logits.shape[-1]
    if length > 1 and (shape[:-1] == (batch, 1) or (shape[:-1] == (batch,) and size in sizes)):
        shape = _score_every_position(found, ids, size) or shape
    if found.output.kind != "tensor":
        found.notes.append(f"forward returns more than logits ({found.output.kind}); they are {found.output.key!r}")

    if (
        len(shape) == 2
        and shape[0] == batch
        and not _joined(shape, length, sizes)
        and (task == "classification" or size not in sizes)
    ):
        found.task, found.vocab_size, found.n_classes = "classification", rows or promised, size
        _try_last_id(found, ids)
        return
    if shape[:-1] not in ((batch, length), (batch, 1), (batch,)) or _joined(shape, length, sizes):
        raise found.failure("output-shape", f"for ids (2, {length}) it returns {shape}, expected (2, {length}, V)",
                            "put batch first, then positions, then the vocabulary")  # fmt: skip
    if size in widths and size not in sizes:
        raise found.failure(
            "no-output-head", f"forward returns hidden states {shape}, as wide as the embedding, not scores over "
            f"the {rows or promised} tokens", "end forward with a linear layer from the width to vocab_size",
        )  # fmt: skip
    if size not in sizes and size == number_in(flat, ("num_classes",)):
        raise found.failure(
            "task-unsupported", f"forward gives each token one of {size} classes; next or masked tokens can be "
            "predicted here, or one class for a text", "give it an output layer over vocab_size, or pool the positions",
        )  # fmt: skip
    if size > 1 and logits.min() >= 0 and (logits.float().sum(-1) - 1).abs().max() < 1e-2:
        found.warn("softmax-on-output", "the scores of each position add up to 1: they are probabilities, and "
                   "training expects logits", "return the values from before the softmax")  # fmt: skip
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
            logits = where.read(output, found.model, len(ids))[0] if where else ids
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
    seen = looks_ahead(found, length)
    saw = {True: "earlier logits see later tokens", False: "no logit sees a later token", None: "no token sees another"}
    if seen and (found.call.target or "causal" in (asked, hint)) and give_causal_mask(found, _masks(found), length):
        seen = False
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


def _masks(found: Probe) -> list[str]:
    """The parameters that may want a causal mask."""
    names = [n for n in inspect.signature(found.model.forward).parameters if n.endswith("mask") and "pad" not in n]
    if found.call.target:
        names = [n for n in names if re.match(r"(tgt|trg|target|dec|look|causal|sub)", n)]
    return names


def _joined(shape: tuple[int, ...], length: int, sizes: set[int]) -> bool:
    """Whether a row holds the scores of all positions, (B, T * V)."""
    return len(shape) == 2 and length > 1 and shape[1] in {length * size for size in sizes}


def _without_scores(output: Any) -> str:
    if not isinstance(output, Tensor):
        return f"forward returns a {type(output).__name__} in which nothing is a score"
    if output.dim() == 0:
        return "forward returns one number, perhaps a loss, which is computed outside"
    kind = str(output.dtype).removeprefix("torch.")
    return f"forward returns {kind} values {tuple(output.shape)}: ids, perhaps of an argmax, are no scores"


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
    fix = likely_fix(error) or "look at what that line gets"
    return found.failure("forward-fails", f"forward raises {told(error)} for ids (2, 8)", fix, line)
