"""transformers' own Trainer, with the defaults of its TrainingArguments wherever nothing else is said here."""

from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from .gpt2 import build_gpt2
from .job import Blocks, Job, Listener, Outcome, count
from .recipe import Recipe

RATE = 5e-4  # with cosine, as Hugging Face's course trains a causal language model


class Tell(TrainerCallback):
    """Tells the listener of every optimizer step, and the trainer when it is enough."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.listener.started()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= self.listener.stepped()


def train(
    model: GPT2LMHeadModel,
    recipe: Recipe,
    blocks: Blocks,
    listener: Listener,
    folder: Path,
    *,
    device: str = "cpu",
    bf16: bool = False,
    compiled: bool = False,
    seed: int = 42,
) -> str:
    """Train until the listener has enough or the recipe ends; gives back the optimizer's name."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,
        max_steps=recipe.steps,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        bf16=bf16,
        torch_compile=compiled,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    Trainer(model=model, args=arguments, train_dataset=blocks, callbacks=[Tell(listener)]).train()
    return str(getattr(arguments.optim, "value", arguments.optim))


def run(job: Job) -> Outcome:
    """Train until the watch has seen enough."""
    bf16, model = job.entry.precision == "bf16", build_gpt2(job.shape)
    recipe = Recipe(job.shape.batch_size)
    optimizer = train(model, recipe, Blocks.of(job), job.watch, job.folder, device=job.device, bf16=bf16)
    return Outcome("bf16" if bf16 else "fp32", count(model), f"optimizer {optimizer}")
