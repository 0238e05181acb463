"""transformers' own Trainer, with the defaults of its TrainingArguments wherever they do not touch the model."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from .gpt2 import build_gpt2
from .job import Blocks, Job, Outcome, Watch, count


class Stop(TrainerCallback):
    """Tells the watch of every optimizer step, and the trainer when it is enough."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = self.watch.tick()


def run(job: Job) -> Outcome:
    """Train until the watch has seen enough."""
    bf16 = job.entry.precision == "bf16"
    arguments = TrainingArguments(
        output_dir=str(job.folder),
        per_device_train_batch_size=job.shape.batch_size,
        max_steps=10_000_000,
        bf16=bf16,
        use_cpu=job.device == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    model = build_gpt2(job.shape)
    trainer = Trainer(model=model, args=arguments, train_dataset=Blocks.of(job), callbacks=[Stop(job.watch)])
    job.watch.start()
    trainer.train()
    optimizer = getattr(arguments.optim, "value", arguments.optim)
    return Outcome("bf16" if bf16 else "fp32", count(model), f"optimizer {optimizer}")
