"""A learning-rate range test: the rate rises at each step, and the loss shows which are too small or too large.

`main` is what a process of its own is asked for; for a model from elsewhere this runs its code.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.config.schema import BUILT_IN, RunConfig
from utils.data.batching.tasks import build_batches
from utils.data.storing.run_store import remembered_store
from utils.models.checkpointing import use_checkpointing
from utils.models.load import load_model
from utils.models.source_files import SOURCE
from utils.runs.folder import RowWriter, RunFolder
from utils.runtime.device import cpu_cores, pick_device
from utils.training.choices import choose_precision, choose_task, with_batch_size
from utils.training.evaluate import what_it_takes
from utils.training.memory import limited
from utils.training.rate_curve import RateCurve, rising_rates
from utils.training.seed_manager import set_deterministic
from utils.training.step import Stepper


def find_rate(config: RunConfig, rates: Sequence[float], out: Path) -> None:
    """Train a new model for one step at each of `rates`, on the run's own data and with its own optimizer.

    After each step a row goes to `out`: learning_rate, and loss, in nats per label, of the weights before it. Ends
    early where the loss diverges. `config.run_dir` holds the run's data and, for a model from elsewhere, its files;
    nothing else is written. Same settings, same rows. It computes as the run will, but is only compiled with
    train.compile=on: auto would not do so for so few steps. Smith 2017, "Cyclical Learning Rates for Training Neural
    Networks", section 3.3, https://arxiv.org/abs/1506.01186.
    """
    device = pick_device(config.train.device)
    torch.set_num_threads(config.train.threads or cpu_cores())
    set_deterministic(config.train.deterministic)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if config.train.deterministic else "high")  # high: TF32
    with limited(config.train.memory_limit_gb, device, _say):
        stepper, losses = _stepper(config, device), list[float]()
        writer = RowWriter(out)
        for i, rate in enumerate(rates):
            losses.append(stepper.step(i, rate).loss.item())
            writer.write({"learning_rate": rate, "loss": losses[-1]})
            if RateCurve(tuple(rates[: i + 1]), tuple(losses)).has_diverged:
                break
        writer.close()


def _stepper(config: RunConfig, device: torch.device) -> Stepper:
    run, t, notes = RunFolder(config.run_dir), config.train, list[str]()
    store = remembered_store(run)
    if store is None:
        raise ValueError(f"{run.path} names no prepared data")
    source = None if config.model.kind in BUILT_IN else run.path / SOURCE
    model = load_model(config.model, store.tokenizer.vocab_size, t.seed, source).to(device)
    if t.activation_checkpointing:
        use_checkpointing(model)
    task = choose_task(config.data, model, store)
    precision = choose_precision(config, model, device)
    if not t.batch_size:
        t = with_batch_size(config, None, store, model, task, precision, notes).train
        for words in notes:
            _say(words)
    train, _ = build_batches(
        store, config.data, t.batch_size, t.grad_accum_steps, t.seed, task, **what_it_takes(model), eval_batches=1
    )
    stepper = Stepper(model, t, train, device, precision, ahead=False)
    stepper.working.train()
    if t.compile == "on":
        stepper.compile(_say)
    return stepper


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main(folder: str, where: str, steps: int, low: float, high: float, out: str) -> int:
    """`find_rate` for the settings in `folder`, whose paths are seen from the folder `where`; the exit code.

    0 done; 1 failed; 2 the request was wrong: why ends stderr.
    """
    os.chdir(where)
    try:
        config = RunFolder(folder).config().model_copy(update={"run_dir": folder})
        find_rate(config, rising_rates(steps, low, high), Path(out))
    except Exception as error:  # the process's edge: who asked sees only the code and the log
        traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ValueError | FileNotFoundError) else 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in (("folder", str), ("where", str), ("steps", int), ("low", float), ("high", float), ("out", str)):
        parser.add_argument(name, type=kind)
    sys.exit(main(**vars(parser.parse_args())))
