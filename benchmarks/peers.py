"""Other people's trainers with their published recipes, against the clock; knows nothing of tables.

nanoGPT comes from a checkout named by its path; transformers and lightning have to be installed. How each trains is in
`contenders/`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from against_clock import TIMED, USED, WARM, Job, Text, Watch
from contenders.job import Blocks
from contenders.recipe import FAR, Recipe
from contenders.shapes import SHAPES
from torch import Tensor, nn

# https://github.com/karpathy/nanoGPT README ("I only have a macbook") and config/train_shakespeare_char.py
PUBLISHED = {"0.8M": Recipe(12, 2000, bias=False), "10.7M": Recipe(64, 5000, dropout=0.2, bias=False)}
# Short runs on a CPU want small batches and no dropout.
FITTED = {"0.8M": Recipe(12, bias=False), "10.7M": Recipe(16, bias=False)}
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


@dataclass(frozen=True)
class Told:
    """A contender's listener that passes its model and tokens on to the watch."""

    watch: Watch
    model: nn.Module
    tokens: int  # of a step

    def started(self) -> None:
        """The clock runs."""
        self.watch.start()

    def stepped(self) -> bool:
        """One more optimizer step is done: whether that is enough."""
        return self.watch.after_step(self.model, self.tokens)


def run_peer(job: Job, text: Text, watch: Watch) -> str:
    """Train `job.contender`, after a few steps outside the clock that also tell a fitted one its speed.

    Gives back what it was made with, in words.
    """
    name, *variants = job.contender.split("-")
    fitted = "fitted" in variants
    recipe = (FITTED if fitted else PUBLISHED)[job.shape]
    pace = Watch(watch.now, most_steps=WARM + TIMED * fitted)
    train(name, variants, job, text, replace(recipe, steps=FAR), pace)
    if fitted:
        steps = max(1, int(USED * watch.seconds / pace.seconds_per_step()))
        recipe = replace(recipe, steps=steps, warmup=min(recipe.warmup, steps // 10))
    train(name, variants, job, text, recipe, watch)
    return ("bf16" if "bf16" in variants else "fp32") + ", compiled" * ("compiled" in variants)


def train(name: str, variants: list[str], job: Job, text: Text, recipe: Recipe, watch: Watch) -> None:
    """One training of a new model, from the job's seed on."""
    shape = replace(SHAPES[job.shape], vocab_size=text.vocab_size)
    bf16, compiled, tokens = "bf16" in variants, "compiled" in variants, recipe.batch_size * shape.block_size
    torch.manual_seed(job.seed)
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        if name == "nanogpt":
            from contenders import nanogpt

            ids = folder / "train.bin"
            text.train.astype(np.uint16).tofile(ids)
            model = nanogpt.build(Path(job.nanogpt) if job.nanogpt else None, shape, recipe)
            judged = Logits(model, lambda m, x: m(x, x)[0])  # without targets it would give the last token's only
            nanogpt.train(model, recipe, ids, Told(watch, judged, tokens), compiled=compiled)
        else:
            from contenders.gpt2 import build_gpt2

            model, blocks = build_gpt2(shape), Blocks(text.train, shape.block_size)
            judged = Logits(model, lambda m, x: m(input_ids=x).logits)
            told = Told(watch, judged, tokens)
            if name == "hf":
                from contenders import hugging_face

                hugging_face.train(
                    model, recipe, blocks, told, folder, bf16=bf16, compiled=compiled, seed=job.seed
                )  # fmt: skip
            else:
                from contenders import lightning_trainer

                lightning_trainer.train(model, recipe, blocks, told, folder, bf16=bf16)
    watch.finish(judged)
