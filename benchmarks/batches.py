"""How fast batches are made: `python benchmarks/batches.py [--documents N] [--batch-size B] [--seq-len T]`.

Writes ids of random documents to a file, maps it, and times each kind of batch on it, in turn with the plain gather of
blocks that is the least there is to do. Medians per 1,000 batches, and the seconds to get ready (packing, lengths), go
to benchmarks/results/batches.md and to the screen. On a shared machine only the ratios of one call can be compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from utils.config.schema import DataConfig
from utils.data.batching.batches import TrainBatches
from utils.data.batching.tasks import build_batches
from utils.data.storing.tokens import Shard, Tokens
from utils.data.tokenizing.tokenizer import Tokenizer, build_tokenizer
from utils.runtime.device import describe

RESULT = Path(__file__).parent / "results" / "batches.md"
VOCABULARY = 300
TEXT = "the cat sat on the mat, and the dog on the log, unbelievably " * 50


@dataclass
class Shelf:
    """What `build_batches` asks of a store, with the same ids on every side."""

    ids: Tokens
    tokenizer: Tokenizer
    kind: str = "text"
    weights: list[float] = field(default_factory=lambda: [1.0])
    labels: list[str] = field(default_factory=list)

    def side(self, name: str, part: int | None = None) -> Tokens:
        """The ids, whatever is asked for."""
        return self.ids


def random_documents(folder: Path, documents: int, vocabulary: int) -> Tokens:
    """Ids on disk; lengths like those of web pages: half below 90 tokens, one in a hundred above 900."""
    draw = np.random.default_rng(0)
    sizes = np.minimum(20_000, draw.lognormal(4.5, 1.0, documents).astype(np.int64) + 2)
    ids = draw.integers(0, vocabulary, int(sizes.sum()), dtype=np.uint16)
    ids.tofile(folder / "ids.bin")
    return Tokens([Shard(folder / "ids.bin", len(ids), np.uint16)], np.concatenate(([0], np.cumsum(sizes))))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {
        "blocks, causal": ("causal", "blocks", False),
        "blocks, masked (whole words)": ("masked", "blocks", False),
        "blocks, seq2seq (halves)": ("seq2seq", "blocks", False),
        "documents, packed": ("causal", "documents", True),
        "documents, one per row, bucketed": ("causal", "documents", False),
        "documents, masked": ("masked", "documents", False),
    }
    with tempfile.TemporaryDirectory() as name:
        tokenizer = build_tokenizer("bpe", TEXT, VOCABULARY)
        shelf = Shelf(random_documents(Path(name), options.documents, tokenizer.vocab_size), tokenizer)
        plain = TrainBatches(shelf.ids, options.seq_len, options.batch_size, 1)
        makers: dict[str, Callable[[int], object]] = {"TrainBatches alone": plain.batch}
        rows = {"TrainBatches alone": ["0.0", "100.0 %"]}
        for kind, (task, packing, packs) in kinds.items():
            begin = time.perf_counter()
            data = DataConfig(seq_len=options.seq_len, packing=packing)
            how = {"packs_documents": packs, "supports_attention_mask": not packs}
            train, _ = build_batches(cast(Any, shelf), data, options.batch_size, 1, 1, task, **how)
            took = (time.perf_counter() - begin) / 2  # both sides are the same
            makers[kind], rows[kind] = (
                train.batch,
                [f"{took:.1f}", f"{train.describe()['fill']:.1%}".replace("%", " %")],
            )
        seconds: dict[str, list[float]] = {kind: [] for kind in makers}
        for part in range(options.rounds + 1):  # the first warms up
            for kind, make in makers.items():
                begin = time.perf_counter()
                for k in range(200 * part, 200 * part + 200):
                    make(k)
                if part:
                    seconds[kind].append(5 * (time.perf_counter() - begin))
        found = [
            f"| {kind} | {statistics.median(times):.2f} | {rows[kind][0]} | {rows[kind][1]} |"
            for kind, times in seconds.items()
        ]
    lines = [
        "# How fast batches are made", "",
        f"`python benchmarks/batches.py --documents {options.documents} --batch-size {options.batch_size} --seq-len "
        f"{options.seq_len}`: {len(shelf.ids) / 1e6:.0f}M tokens on disk, one thread on "
        f"{describe(torch.device('cpu'))}, numpy {np.__version__}. Medians of {options.rounds} rounds. On a shared "
        "machine only the ratios hold.", "",
        "| batches | seconds per 1,000 | seconds to get ready | positions filled |", "|---|---|---|---|", *found,
    ]  # fmt: skip
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
