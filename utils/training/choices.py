"""What `auto` means for a run: its task, number format, batch size, and whether it is compiled.

Each choice is made once: a run that goes on keeps what it began with, which its meta.json says.
"""

from typing import Any

import torch
from torch import nn

from utils.config.schema import BUILT_IN, DataConfig, RunConfig
from utils.data.batching.tasks import build_batches
from utils.data.storing.token_store import TokenStore
from utils.data.tokenizing.tokenizer import tokens_needed
from utils.inference.generate import task_of
from utils.runtime.device import pick_precision
from utils.training.batch_size import fitting_batch_size
from utils.training.compiled import is_worth_it
from utils.training.evaluate import what_it_takes
from utils.training.optim import usual_optimizer
from utils.training.step import Stepper


def choose_task(data: DataConfig, model: nn.Module, store: TokenStore) -> str:
    """The task to train: what `data.task` says, or what the model is made for. Raises ValueError if it can't be."""
    made_for, tokenizer = task_of(model), store.tokenizer
    task = made_for if data.task == "auto" else data.task
    if task != made_for:
        raise ValueError(f"data.task={task} does not fit this model, which is made for {made_for}: use data.task=auto")
    if task == "classification" and store.kind != "labelled":
        raise ValueError(
            "this model is a classifier, and these documents have no labels: data.label_field=COLUMN names theirs "
            "(sources csv, jsonl, parquet, hub)"
        )
    rows = model.shape.vocab_size
    if task == "masked" and tokenizer.mask_id is None and rows < (needed := tokens_needed(task, tokenizer.vocab_size)):
        raise ValueError(
            f"data.task={task} needs {needed} tokens, the mask being the last, and the model's table has "
            f"{rows}: lower data.vocab_size to {rows - 1}"
        )
    return task


def choose_precision(config: RunConfig, model: nn.Module, device: torch.device, began: str | None = None) -> str:
    """fp32, bf16 or fp16: what `train.precision` says, or what the model is fastest in and trains well in."""
    precision = pick_precision(config.train.precision, device, gains=_gains_from_bf16(model), began=began)
    if config.model.kind == "bdh" and config.train.precision == "auto" and precision == "fp16":
        return "fp32"  # its sums over a text are not scaled down, and fp16 ends at 65504
    return precision


def _gains_from_bf16(model: nn.Module) -> bool:
    """Whether the products of this model are large enough for a CPU to be faster in bf16."""
    if hasattr(model, "full_precision"):  # computes on a copy in bf16
        return bool(model.shape.n_embd >= 128)  # type: ignore[union-attr]
    return sum(p.numel() for p in model.parameters()) >= 4_000_000  # autocast converts every weight at every step


def choose_compile(config: RunConfig, stepper: Stepper, steps: int, known: dict[str, Any]) -> bool:
    """Whether a run of so many optimizer steps is compiled; `known`: how it began."""
    if config.train.compile != "auto":
        return config.train.compile == "on"
    if known:
        return bool(known.get("compiled"))
    # A model from elsewhere trains behind walls, where no compiler can be started.
    return config.model.kind in BUILT_IN and is_worth_it(steps * stepper.foretold_seconds(), stepper.device)


def with_optimizer(config: RunConfig, model: nn.Module, known: str | None) -> RunConfig:
    """The settings with the name that train.optimizer=auto stands for: the `known` one of this run, or the usual."""
    if config.train.optimizer != "auto":
        return config
    chosen = known or usual_optimizer(model)
    return config.model_copy(update={"train": config.train.model_copy(update={"optimizer": chosen})})


def with_batch_size(
    config: RunConfig,
    known: int | None,
    store: TokenStore,
    model: nn.Module,
    task: str,
    precision: str,
    notes: list[str],
) -> RunConfig:
    """The settings with the number that train.batch_size=auto stands for: the `known` one of this run, or found now."""
    if not known:
        t = config.train
        train, _ = build_batches(store, config.data, 1, t.grad_accum_steps, t.seed, task, **what_it_takes(model))
        device = next(model.parameters()).device
        known, words = fitting_batch_size(model, t, train, device, precision)
        notes.append(words)
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": known})})
