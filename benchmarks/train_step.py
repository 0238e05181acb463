"""How fast one optimizer step of the quickstart is: `python benchmarks/train_step.py [--rounds N] [key=value ...]`.

Times gpt and llama in alternation on the same batches, after a warm-up, and prints medians as a Markdown table.
On a shared machine only the ratios of one call can be compared.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from utils.config.load import load_config
from utils.data.batching.batches import EvalBatches, TrainBatches
from utils.data.batching.tasks import TaskBatches
from utils.data.storing.token_store import open_store
from utils.models.load import load_model, resolve_shape
from utils.runs.folder import RunFolder
from utils.runs.recorder import Recorder
from utils.runtime.device import cpu_cores, describe, pick_device, pick_precision
from utils.training.trainer import Trainer


def build(kind: str, overrides: list[str], folder: Path) -> Trainer:
    """A trainer of the quickstart with another kind of model."""
    config = load_config("quickstart", overrides=[f"model.kind={kind}", *overrides])
    store, device = open_store(config.data), pick_device(config.train.device)
    run = RunFolder(folder / kind)
    run.create(config)
    model = load_model(resolve_shape(config.model, store.tokenizer.vocab_size), store.tokenizer.vocab_size)
    batches = TaskBatches(TrainBatches(store.train, config.data.seq_len, config.train.batch_size, config.train.seed))
    val = TaskBatches(EvalBatches(store.val, config.data.seq_len, config.train.batch_size, 1))
    precision = pick_precision(config.train.precision, device)
    return Trainer(model.to(device), config.train, batches, val, Recorder(run), device, precision)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(cpu_cores())
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: build(kind, options.overrides, Path(folder)) for kind in ("gpt", "llama")}
        seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
        for step in range(options.rounds + 3):
            for kind, trainer in trainers.items():
                begin = time.perf_counter()
                trainer.train_step(step)
                if step >= 3:
                    seconds[kind].append(time.perf_counter() - begin)
    print(f"{describe(pick_device())}, torch {torch.__version__}, {options.rounds} rounds, {options.overrides}\n")
    print("| model | ms per step | tokens/s |\n|---|---|---|")
    for kind, times in seconds.items():
        median = statistics.median(times)
        print(f"| {kind} | {1000 * median:.0f} | {trainers[kind].tokens_per_step / median:,.0f} |")


if __name__ == "__main__":
    main()
