"""How fast text becomes tokens and tokens batches, and in how much memory, beside the plain tokenizers library.

    python -m benchmarks.prepare_tokens --bytes 200_000_000

Prints one table. The text is written once, into --folder (default: a temporary folder that is removed).
"""

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.config.schema import DataConfig

SAMPLE = 20_000_000  # bytes that the library's speed is measured on
ROUNDS = 3  # measurements of it


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Random words, as different as those of a real language: short ones first, for they are the frequent ones."""
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    sizes = np.sort(np.clip(rng.poisson(6, count), 2, 16))
    return ["".join(rng.choice(letters, size)) for size in sizes]


def write_text(path: Path, size: int) -> None:
    """`size` bytes of paragraphs: a bit of a story, then words drawn as in a language (Zipf)."""
    from utils.data.reading.stories import write_stories

    rng = np.random.default_rng(0)
    story, known = write_stories(2_000_000, 0), words(rng, 300_000)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            drawn = np.minimum(rng.zipf(1.2, (1000, 160)), len(known)) - 1
            starts = rng.integers(0, len(story) - 1000, 1000)
            text = "".join(
                f"{story[start : start + 1000].strip()}\n{' '.join([known[i] for i in row])}.\n\n"
                for start, row in zip(starts.tolist(), drawn.tolist(), strict=True)
            )
            written += file.write(text[: size - written])


def family() -> Iterator[int]:
    """This process and all below it."""
    waiting = [os.getpid()]
    while waiting:
        yield (pid := waiting.pop())
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except OSError:
                continue


def own_memory() -> int:
    """Bytes that this process and those below it hold, pages of files that could be dropped at any time left out."""
    total = 0
    for pid in family():
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "RssShmem"))}
        total += 1024 * sum(map(int, kilobytes.values()))
    return total


class Peak:
    """The most memory held, looked at 50 times a second; and how long each phase took."""

    def __init__(self) -> None:
        self.bytes, self.phases, self._stop = 0, dict[str, float](), threading.Event()
        self.by_phase, self._what, self._since = dict[str, int](), "opening", time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self("finishing", 0, 0)

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.perf_counter()
        self.phases[self._what] = self.phases.get(self._what, 0.0) + now - self._since
        self._what, self._since = what, now

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            now = own_memory()
            self.bytes = max(self.bytes, now)
            self.by_phase[self._what] = max(self.by_phase.get(self._what, 0), now)


class Clock:
    """Seconds on the wall, and of all cores together, with those of processes that have ended."""

    def __init__(self) -> None:
        self._wall, self._cores = time.perf_counter(), sum(os.times()[:4])

    def speed(self, size: int) -> tuple[float, float]:
        """MB per second of each, for `size` bytes."""
        wall, used = time.perf_counter() - self._wall, sum(os.times()[:4]) - self._cores
        return size / 1e6 / wall, size / 1e6 / max(used, 1e-9)


def plain_speed(texts: list[str], folder: Path) -> tuple[float, float]:
    """The speed of the library's encode_batch alone, on all cores: nothing is read, and no ids are kept."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size, clock = sum(len(text.encode()) for text in texts), Clock()
    for i in range(0, len(texts), 1000):
        library.encode_batch(texts[i : i + 1000], add_special_tokens=False)
    return clock.speed(size)


def settings(path: Path, vocab_size: int) -> DataConfig:
    return DataConfig(source="text", path=str(path), tokenizer="bpe", vocab_size=vocab_size)


def batches_seconds(store: object, count: int = 1000) -> float:
    """Seconds for `count` batches of (16, 256)."""
    from utils.data.batching.batches import TrainBatches

    batches, begin = TrainBatches(store.train, 256, 16, 0), time.perf_counter()  # type: ignore[attr-defined]
    for k in range(count):
        batches.batch(k)
    return (time.perf_counter() - begin) * 1000 / count


def said(speed: tuple[float, float]) -> str:
    return f"{speed[0]:.1f} MB/s, {speed[1]:.1f} MB per second of one core"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=2_000_000_000, help="size of the text")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="where the text is kept for another time, and the cache is")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="tbt-bench-"))
    try:
        measure(folder, arguments.bytes, arguments.vocab_size)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def measure(folder: Path, size: int, vocab_size: int) -> None:
    """One table."""
    from utils.data.reading.sources import read_documents
    from utils.data.storing.token_store import open_store

    os.environ["TBT_CACHE"] = str(folder / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"text-{size}.txt"
    if not path.exists() or path.stat().st_size != size:
        write_text(path, size)
    with Peak() as peak:
        clock = Clock()
        store = open_store(settings(path, vocab_size), progress=peak)
        ours = clock.speed(size)
    part = folder / "sample.txt"
    with path.open("rb") as source:
        part.write_bytes(source.read(min(size, SAMPLE)))
    texts = [document.text for document in read_documents(settings(part, vocab_size))]
    plain = [plain_speed(texts, store.folder) for _ in range(ROUNDS)]
    rows = [
        ("text", f"{size / 1e6:,.0f} MB in {sum(store.info['documents'].values()):,} documents"),
        ("tokens", f"{sum(sum(each.values()) for each in store.info['tokens']):,} of {vocab_size:,} kinds"),
        ("open_store, end to end", said(ours)),
        *(
            (f"  {what}", f"{took:,.1f} s, {peak.by_phase.get(what, 0) / 1e6:,.0f} MB of memory at most")
            for what, took in peak.phases.items()
        ),
        ("peak memory, with workers", f"{peak.bytes / 1e6:,.0f} MB"),
        ("tokenizers.encode_batch", f"{said(sorted(plain)[ROUNDS // 2])} (encoding alone, the first 20 MB)"),
        ("1,000 batches of (16, 256)", f"{statistics.median(batches_seconds(store) for _ in range(3)):.2f} s"),
    ]
    for what, value in rows:
        print(f"| {what:34} | {value} |")


if __name__ == "__main__":
    main()
