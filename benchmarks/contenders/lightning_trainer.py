"""lightning's Trainer with the GPT-2 of transformers, AdamW and the clipping of the others."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from .gpt2 import build_gpt2
from .job import Blocks, Job, Outcome, Watch, count
from .shapes import Shape


class Module(LightningModule):
    """A model and its optimizer, as lightning wants them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = build_gpt2(shape)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW as torch builds it."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)


class Stop(Callback):
    """Tells the watch of every optimizer step, and the trainer when it is enough."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = self.watch.tick()


def run(job: Job) -> Outcome:
    """Train until the watch has seen enough."""
    bf16 = job.entry.precision == "bf16"
    module = Module(job.shape)
    trainer = Trainer(
        accelerator="cpu" if job.device == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job.folder,
        callbacks=[Stop(job.watch)],
    )
    batches = DataLoader(Blocks.of(job), job.shape.batch_size, shuffle=True, drop_last=True)
    job.watch.start()
    trainer.fit(module, batches)
    return Outcome("bf16" if bf16 else "fp32", count(module))
