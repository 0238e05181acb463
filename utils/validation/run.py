"""Puts questions to a model, one after another, each by itself. Knows no question: a tier hands its own in."""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.models.adapter import AdaptedModel
from utils.validation.lengths import check_shapes
from utils.validation.report import Check
from utils.validation.subject import Subject, locate

CAUSAL = {"causal": True, "seq2seq": True, "masked": False, "classification": None}
Checks = dict[str, Callable[[Subject], Check | None]]


def describe(model: nn.Module) -> tuple[int, int, str]:
    """(vocab_size, block_size, task) as the model itself states them in `.shape` and `.task` ("causal" if unsaid).

    Raises ValueError if it has no shape with both sizes.
    """
    model = getattr(model, "_orig_mod", model)
    shape = getattr(model, "shape", None)
    sizes = getattr(shape, "vocab_size", None), getattr(shape, "block_size", None)
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"{type(model).__name__} does not say how large its vocabulary and its longest text are: give it "
            "`shape` with vocab_size and block_size, or pass both"
        )
    return (*sizes, getattr(model, "task", "causal"))


def run_checks(
    model: nn.Module,
    checks: Checks,
    *,
    vocab_size: int,
    block_size: int,
    task: str = "causal",
    seed: int = 0,
    only: list[str] | None = None,
    causal: bool | str | None = "by task",
    started: Callable[[str], None] = lambda name: None,
) -> Iterator[Check]:
    """Ask the questions of one tier, and yield each answer as soon as it is there.

    Args:
        model: left exactly as found: parameters, buffers, gradients, modes, flags and the process's random state.
        checks: name -> question; one that does not apply to this kind of model answers None and is left out.
        vocab_size: V, at least 2.
        block_size: the longest sequence the model promises to accept, in tokens.
        task: causal, masked, seq2seq or classification.
        seed: of every draw.
        only: names to ask; None asks all.
        causal: True, future tokens must not matter; False, they must; None, only report which.
        started: told the name of each check as it begins, for whoever may not live to see its answer.

    An error inside a check is its answer and ends no other: "fail" in the tier that asks whether the model is
    sound (it has the shapes check), "warn" in the others, which measure models that are.

    Raises:
        TypeError: model is no nn.Module.  ValueError: an unknown task or name, or sizes that are too small.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if vocab_size < 2 or block_size < 1:
        raise ValueError(f"need vocab_size >= 2 and block_size >= 1; got {vocab_size} and {block_size}")
    if task not in CAUSAL:
        raise ValueError(f"task={task} is not known: choose one of {', '.join(CAUSAL)}")
    unknown = [name for name in only or [] if name not in checks]
    if unknown:
        raise ValueError(f"no check is called {', '.join(unknown)}: choose from {', '.join(checks)}")
    subject_of = (model, vocab_size, block_size, CAUSAL[task] if causal == "by task" else causal, seed, task)
    return _answers(subject_of, checks, only, started)


def _answers(
    subject_of: tuple, checks: Checks, only: list[str] | None, started: Callable[[str], None]
) -> Iterator[Check]:
    """Apart from `run_checks`, so that wrong requests raise there and not at the first answer."""
    error = "fail" if check_shapes in checks.values() else "warn"
    with _set_aside():
        subject = Subject(*subject_of)
    try:
        if only is not None or error == "warn":  # which lengths work must be known, whoever asks
            _isolated("shapes", check_shapes, subject, error)
        for name, check in checks.items():
            if only is None or name in only:
                started(name)
                answer = _isolated(name, check, subject, error)
                if answer is not None:
                    yield answer
    finally:
        subject.close()


def _isolated(name: str, check: Callable[[Subject], Check | None], subject: Subject, error_is: str) -> Check | None:
    why = getattr(check, "why", "")
    if not subject.length and check is not check_shapes:
        return Check(name, "skip", "needs logits of the right shape", "", "Repair the shapes first.", why=why)
    start = time.perf_counter()
    with _set_aside():
        try:
            subject.reset()
            answer = check(subject)
        except torch.OutOfMemoryError:
            advice = "Use a smaller model or block, or free the device."
            answer = Check(name, "skip", "out of memory", "", advice)
        except Exception as error:  # a stranger's model: the error is the answer
            told = locate(error) if error_is == "fail" else f"could not be measured because {locate(error)}"
            answer = Check(name, error_is, told, "no error", "The model raised this during the check; open that line.")
    if answer is None:
        return None
    answer = replace(answer, seconds=time.perf_counter() - start, why=answer.why or why)
    return _in_their_words(answer) if isinstance(subject.original, AdaptedModel) else answer


def _in_their_words(value: Any) -> Any:
    """The same without `inner.`, which the adapter puts before the names that somebody's model gives its parts."""
    if isinstance(value, Check):
        return replace(value, **{f.name: _in_their_words(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, dict):
        return {_in_their_words(key): _in_their_words(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_in_their_words, value))
    return re.sub(r"(?<![\w.])inner\.(?=\w)", "", value) if isinstance(value, str) else value


@contextmanager
def _set_aside():
    """The caller's random state and gradient modes are not the checks' to change, nor theirs the caller's."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
