"""This package as its users run it: settings in, `run_training`, told to stop by the watch."""

import math
import signal

from safetensors import safe_open

from utils.config.load import load_config
from utils.config.schema import RunConfig, field_table
from utils.runs.folder import RunFolder
from utils.training.run import run_training

from .job import Job, Outcome, Watch

LONG = 100_000  # steps: what `auto` decides is for a run that is worth some preparation


def settings(job: Job) -> list[str]:
    """The run as key=value words; what `job.settings` says comes last and wins."""
    shape = job.shape
    words = [
        "model.kind=gpt",
        *(f"model.shape.{name}={getattr(shape, name)}" for name in ("n_layer", "n_head", "n_embd", "block_size")),
        "data.source=text",
        f"data.path={job.text}",
        f"data.val_from={job.text.with_name('val.txt')}",
        "data.document=file",
        "data.tokenizer=char",
        f"data.seq_len={shape.block_size}",
        f"train.batch_size={shape.batch_size}",
        f"train.max_steps={LONG}",
        "train.optimizer=adamw",  # as everybody here
        "train.learning_rate=1e-3",
        "train.min_lr=1e-4",
        f"train.device={job.device}",
        f"train.threads={job.threads}",
        f"train.precision={job.entry.precision}",
        *(f"train.{name}=0" for name in ("eval_every", "save_every", "sample_every")),
        f"run_dir={job.folder / 'run'}",
    ]
    if shape.vocab_size > 1000:  # otherwise as many rows as the text has characters, as nanoGPT does it
        words.append(f"model.shape.vocab_size={shape.vocab_size}")
    if any(key == "train.compile" for key, *_ in field_table()):
        words.append(f'train.compile="{job.entry.compile}"')  # unquoted, YAML reads on as true
    elif job.entry.compile == "on":
        raise ValueError("this version has no train.compile")
    return words + job.settings


def train(config: RunConfig, watch: Watch) -> int:
    """Train until the watch has seen enough; gives back how many steps were done."""
    asked = False

    def stop() -> int | None:
        nonlocal asked
        if not asked:  # once before the first step
            asked = True
            watch.started()
            return None
        return signal.SIGINT if watch.stepped() else None

    return run_training(config, stop).progress.step


def run(job: Job) -> Outcome:
    """Train and read the rest from the run folder. Raises RuntimeError if not every step was counted."""
    config = load_config(overrides=settings(job))
    done = train(config, job.watch)
    if done != job.watch.ticks:
        raise RuntimeError(f"{done} steps were done and {job.watch.ticks} counted")
    folder = RunFolder(config.run_dir)
    precision, compiled = made_with(folder)
    return Outcome(precision, _saved_parameters(folder), compiled=compiled)


def made_with(folder: RunFolder) -> tuple[str, bool]:
    """The number format of a run, and whether it was compiled: wanted so, and not given up."""
    made = folder.read_json("meta")["made_with"]
    given_up = any("could not be compiled" in event.get("text", "") for event in folder.events("alert"))
    return made["precision"], bool(made.get("compiled")) and not given_up


def _saved_parameters(folder: RunFolder) -> int:
    """How many weights the checkpoint holds, tied ones once."""
    (weights,) = folder.checkpoints.glob("*/model.safetensors")
    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)
