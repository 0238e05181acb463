"""Other people's trainers with their published recipes, against the clock; knows nothing of tables.

nanoGPT comes from a checkout named by its path; transformers and lightning have to be installed.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from against_clock import FAR, TIMED, USED, WARM, Job, Text, Watch
from contenders.job import Blocks
from contenders.nanogpt import load
from contenders.shapes import SHAPES
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """What nanoGPT's config says of a run."""

    batch_size: int
    steps: int
    dropout: float = 0.0
    rate: float = 1e-3
    least_rate: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


# https://github.com/karpathy/nanoGPT README ("I only have a macbook") and config/train_shakespeare_char.py
PUBLISHED = {"0.8M": Recipe(12, 2000), "10.7M": Recipe(64, 5000, dropout=0.2)}
FITTED = {"0.8M": Recipe(12, 0), "10.7M": Recipe(16, 0)}  # short runs on a CPU want small batches and no dropout
ABOUT = {
    "nanogpt": "nanoGPT: its model, optimizer and loop, fp32, with the settings of its README and of its "
    "config/train_shakespeare_char.py: batch {batch}, dropout {dropout}, beta2 0.99, cosine from 1e-3 to 1e-4 over "
    "{steps}",
    "hf": "transformers' `Trainer` with GPT-2 (sdpa, no dropout): batch {batch}, AdamW 5e-4, weight decay 0.1 and "
    "cosine as Hugging Face's course trains a causal language model, here over {steps}",
    "lightning": "lightning's `Trainer` with GPT-2 (sdpa, no dropout): nanoGPT's optimizer, batch {batch}, cosine from "
    "1e-3 to 1e-4 over {steps}",
}
VARIANTS = {"fitted": "", "bf16": "; bf16 autocast", "compiled": "; torch.compile"}


class Logits(nn.Module):
    """A model as evaluation wants it: ids (B, T) in, logits (B, T, V) out."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.call(self.model, input_ids)


def about(contender: str, shape: str) -> str:
    """A contender in words. Raises ValueError for one nobody knows."""
    name, *variants = contender.split("-")
    able = {"nanogpt": ("fitted", "compiled"), "hf": tuple(VARIANTS), "lightning": ("fitted", "bf16")}
    if wrong := [word for word in variants if word not in able.get(name, ())] or [name] * (name not in able):
        known = [f"{base}[-{'|-'.join(more)}]" for base, more in able.items()]
        raise ValueError(f"no contender {contender} ({wrong[0]}): choose from ours, {', '.join(known)}")
    recipe = (FITTED if "fitted" in variants else PUBLISHED)[shape]
    steps = f"{recipe.steps:,} steps, warmup {recipe.warmup}"
    if "fitted" in variants:
        steps = f"as many steps as the seconds allow (measured, as for ours), warmup {recipe.warmup} or a tenth"
    text = ABOUT[name].format(batch=recipe.batch_size, dropout=recipe.dropout, steps=steps)
    return text + "".join(VARIANTS[word] for word in variants)


def run_peer(job: Job, text: Text, watch: Watch) -> str:
    """Train `job.contender`, after a few steps outside the clock that also tell a fitted one its speed.

    Gives back what it was made with, in words.
    """
    name, *variants = job.contender.split("-")
    train = {"nanogpt": nanogpt, "hf": hugging_face, "lightning": lightning}[name]
    fitted = "fitted" in variants
    recipe = (FITTED if fitted else PUBLISHED)[job.shape]
    pace = Watch(watch.now, most_steps=WARM + TIMED * fitted)
    train(job, text, pace, replace(recipe, steps=FAR), variants)
    if fitted:
        steps = max(1, int(USED * watch.seconds / pace.seconds_per_step()))
        recipe = replace(recipe, steps=steps, warmup=min(recipe.warmup, steps // 10))
    train(job, text, watch, recipe, variants)
    return ("bf16" if "bf16" in variants else "fp32") + ", compiled" * ("compiled" in variants)


def rate_at(step: int, recipe: Recipe) -> float:
    """nanoGPT's learning rate: linear warmup, then a cosine to the least rate."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / (recipe.warmup + 1)
    done = min(1.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    return recipe.least_rate + 0.5 * (1 + math.cos(math.pi * done)) * (recipe.rate - recipe.least_rate)


def nanogpt(job: Job, text: Text, watch: Watch, recipe: Recipe, variants: list[str]) -> None:
    """nanoGPT's model and optimizer, with what its train.py does in a step on a CPU."""
    module = load(Path(job.nanogpt) if job.nanogpt else None)
    shape, block = SHAPES[job.shape], SHAPES[job.shape].block_size
    torch.manual_seed(job.seed)
    config = module.GPTConfig(
        block_size=block, vocab_size=text.vocab_size, n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd,
        dropout=recipe.dropout, bias=False,
    )  # fmt: skip
    model = module.GPT(config)
    optimizer = model.configure_optimizers(recipe.weight_decay, recipe.rate, recipe.betas, "cpu")
    forward = torch.compile(model) if "compiled" in variants else model
    judged = Logits(model, lambda m, ids: m(ids, ids)[0])  # without targets it would give the last token's only
    model.train()
    watch.start()
    batch = random_blocks(text.train, block, recipe.batch_size)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, recipe)
        _, loss = forward(*batch)
        batch = random_blocks(text.train, block, recipe.batch_size)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if watch.after_step(judged, recipe.batch_size * block):
            break
    watch.finish(judged)


def random_blocks(ids: np.ndarray, block: int, count: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels (B, T) from anywhere in the text, as nanoGPT draws them."""
    starts = torch.randint(len(ids) - block, (count,)).tolist()
    rows = torch.from_numpy(np.stack([ids[s : s + block + 1] for s in starts]).astype(np.int64))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def gpt2(job: Job, text: Text) -> nn.Module:
    """transformers' GPT-2 of this shape."""
    from contenders.gpt2 import build_gpt2

    torch.manual_seed(job.seed)
    return build_gpt2(replace(SHAPES[job.shape], vocab_size=text.vocab_size))


def hugging_face(job: Job, text: Text, watch: Watch, recipe: Recipe, variants: list[str]) -> None:
    """transformers' Trainer; what it doesn't get told here is its default."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    block = SHAPES[job.shape].block_size
    model = gpt2(job, text)
    judged = Logits(model, lambda m, ids: m(input_ids=ids).logits)

    class OnClock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= watch.after_step(judged, recipe.batch_size * block)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=recipe.steps, per_device_train_batch_size=recipe.batch_size,
            learning_rate=5e-4, lr_scheduler_type="cosine", warmup_steps=recipe.warmup,
            weight_decay=recipe.weight_decay, bf16="bf16" in variants, torch_compile="compiled" in variants,
            use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True, report_to=[], seed=job.seed,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=Blocks(text.train, block), callbacks=[OnClock()]).train()
    watch.finish(judged)


def lightning(job: Job, text: Text, watch: Watch, recipe: Recipe, variants: list[str]) -> None:
    """lightning's Trainer with the same GPT-2 and nanoGPT's optimizer."""
    from lightning.pytorch import LightningModule
    from lightning.pytorch import Trainer as LightningTrainer

    block = SHAPES[job.shape].block_size
    model = gpt2(job, text)
    judged = Logits(model, lambda m, ids: m(input_ids=ids).logits)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def on_train_start(self) -> None:
            watch.start()

        def training_step(self, batch: dict[str, Tensor], i: int) -> Tensor:
            return self.model(**batch).loss

        def on_train_batch_end(self, outputs: Any, batch: Any, i: int) -> None:
            self.trainer.should_stop |= watch.after_step(judged, recipe.batch_size * block)

        def configure_optimizers(self) -> Any:
            parameters = list(self.model.parameters())
            groups: list[dict[str, Any]] = [
                {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=recipe.betas)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, recipe) / recipe.rate)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    loader = torch.utils.data.DataLoader(
        Blocks(text.train, block), batch_size=recipe.batch_size, shuffle=True, drop_last=True
    )
    with tempfile.TemporaryDirectory() as folder:
        LightningTrainer(
            accelerator="cpu", devices=1, max_steps=recipe.steps, max_epochs=-1, gradient_clip_val=1.0, logger=False,
            precision="bf16-mixed" if "bf16" in variants else "32-true", default_root_dir=folder,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Module(), loader)  # fmt: skip
    watch.finish(judged)
