"""How fast a BDH writes: `python benchmarks/bdh_decode.py [--contexts 128 1024] [--neurons N] [--note TEXT]`.

For each context: the naive form reads the whole text again for a token, the recurrent one takes a step from its
state. Both in turn, several times; medians go into benchmarks/results/bdh_decode.md and to the screen. The weights
are untrained, so half of the neurons are active and nothing is gained by sparsity. On a shared machine only the
ratios of one call can be compared.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from utils.config.schema import ModelShape
from utils.models.registry import build_model
from utils.runtime.device import cpu_cores, describe, pick_device

RESULT = Path(__file__).parent / "results" / "bdh_decode.md"
STEPS = 10  # tokens per round in the recurrent form


def seconds(model: torch.nn.Module, context: int, rounds: int) -> tuple[float, float]:
    """Median seconds per token at this context: naive, recurrent."""
    ids = torch.randint(model.shape.vocab_size, (1, context))
    naive, recurrent = [], []
    for _ in range(rounds):
        cache = model.new_cache()
        begin = time.perf_counter()
        model(ids, cache)  # what a naive token costs also fills the state (which adds less than a tenth)
        naive.append(time.perf_counter() - begin)
        for _ in range(STEPS):
            begin = time.perf_counter()
            model(ids[:, -1:], cache)
            recurrent.append(time.perf_counter() - begin)
    return statistics.median(naive), statistics.median(recurrent)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 8192])
    parser.add_argument("--neurons", type=int, default=0, help="over all heads; 0 = 128 x 256, the published default")
    parser.add_argument("--note", default="", help="what else the reader should know")
    options = parser.parse_args()
    torch.set_num_threads(cpu_cores())
    torch.manual_seed(0)
    shape = ModelShape(n_layer=6, n_head=4, n_embd=256, n_hidden=options.neurons, vocab_size=256, block_size=512)
    model = build_model("bdh", shape).eval()
    rows = []
    with torch.inference_mode():
        seconds(model, 16, 1)  # warm-up
        for context in options.contexts:
            rounds = max(1, min(5, 2048 // context))
            naive, recurrent = seconds(model, context, rounds)
            speeds = f"{1 / naive:.3g} | {1 / recurrent:.3g} | {naive / recurrent:,.0f} x"
            rows.append(f"| {context:,} | {speeds} | {rounds} |")
    size = sum(p.numel() for p in model.parameters())
    lines = [
        "# Decoding with BDH", "",
        f"`python benchmarks/bdh_decode.py`, {size / 1e6:.1f}M parameters, untrained, fp32, one text,",
        f"{describe(pick_device())}, torch {torch.__version__}. {options.note}".rstrip(), "",
        f"Tokens per second, medians. Naive: the whole text again for each token, in chunks of {model.chunk} (a round",
        f"is one token). Recurrent: a step from the state (a round is {STEPS} tokens).", "",
        "| context | naive | recurrent | ratio | rounds |", "|---|---|---|---|---|", *rows,
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
