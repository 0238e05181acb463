"""lightning's Trainer with the GPT-2 of transformers, and nanoGPT's optimizer, rate and clipping."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

from .gpt2 import build_gpt2
from .job import Blocks, Job, Listener, Outcome, count
from .recipe import Recipe


class Module(LightningModule):
    """A model and its optimizer, as lightning wants them."""

    def __init__(self, model: GPT2LMHeadModel, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        """AdamW as torch builds it; matrices decay."""
        recipe, parameters = self.recipe, list(self.model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=recipe.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate_at(step) / recipe.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Tell(Callback):
    """Tells the listener of every optimizer step, and the trainer when it is enough."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def on_train_start(self, *_: Any) -> None:
        self.listener.started()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop |= self.listener.stepped()


def train(
    model: GPT2LMHeadModel,
    recipe: Recipe,
    blocks: Blocks,
    listener: Listener,
    folder: Path,
    *,
    device: str = "cpu",
    bf16: bool = False,
) -> None:
    """Train until the listener has enough or the recipe ends."""
    trainer = Trainer(
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_steps=recipe.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[Tell(listener)],
    )
    trainer.fit(Module(model, recipe), DataLoader(blocks, recipe.batch_size, shuffle=True, drop_last=True))


def run(job: Job) -> Outcome:
    """Train until the watch has seen enough."""
    bf16, model = job.entry.precision == "bf16", build_gpt2(job.shape)
    train(model, Recipe(job.shape.batch_size), Blocks.of(job), job.watch, job.folder, device=job.device, bf16=bf16)
    return Outcome("bf16" if bf16 else "fp32", count(model))
