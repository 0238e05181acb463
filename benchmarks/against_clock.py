"""One training run against a clock, in a process of its own: what `time_to_loss.py` and `ablation.py` share.

Knows our trainer and no other. A contender is a function of (job, text, watch): it trains, tells the watch about every
optimizer step, stops when the watch says so, and gives back in words what it computed in. The clock stands still while
the watch evaluates.
"""

import argparse
import json
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from contenders.ours import made_with
from torch import nn
from workplace import call, workplace

from utils.config.load import load_config
from utils.config.schema import DataConfig, RunConfig
from utils.data.batching.batches import EvalBatches
from utils.data.batching.tasks import TaskBatches
from utils.data.storing.token_store import TokenStore, open_store
from utils.runs.folder import RunFolder
from utils.runtime.environment import environment
from utils.runtime.files import cache_dir, sha256_json, write_atomic
from utils.training import run
from utils.training.evaluate import evaluate
from utils.training.trainer import Trainer

HERE = Path(__file__).parent
RECIPES, RESULTS = HERE / "recipes", HERE / "results"
DATA = HERE.parents[1] / "shared" / "data"
TASKS = {
    "shakespeare-char": ["data.tokenizer=char"],
    "wikitext-bpe": ["data.tokenizer=bpe", "data.vocab_size=2048"],
}
OWN = [f"train.{name}=0" for name in ("eval_every", "save_every", "sample_every")]  # the watch evaluates
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
SECONDS = {"cpu": "CPU seconds of the process, all threads", "wall": "seconds by the wall"}
WARM, TIMED = 3, 30  # steps before the measurement of a contender's speed, and in it
PLACES = 3  # in our run where its speed is measured: a step need not cost the same at the beginning and at the end
USED = 0.98  # of the seconds are planned for, so that a run a little slower than measured still ends its schedule
EVAL_TOKENS = 4096  # in one batch of an evaluation
PLACES_HERE = ("--data", "--keep", "--out", "--nanogpt")
FAR = 1_000_000  # steps: a schedule that does not end while the speed is measured


@dataclass(frozen=True)
class Job:
    """One run: who trains on what for how long. JSON, so that another process can do it."""

    name: str  # the line of the table it belongs to
    contender: str
    task: str
    shape: str
    seed: int
    seconds: float
    clock: str  # cpu or wall
    threads: int
    points: int  # evaluations, the last at the end
    words: tuple[str, ...]  # settings as `key.path=value`; of a peer, only where the text is
    recipe: str = ""  # YAML file they come on top of
    nanogpt: str = ""  # folder of a checkout
    settings: str = ""  # hash of all settings and of the text
    steps: int = 0  # of ours, whatever the seconds; 0 = as many as they allow

    @property
    def key(self) -> str:
        """What makes two runs the same, wherever their files are."""
        return sha256_json({k: v for k, v in asdict(self).items() if k not in ("words", "recipe", "nanogpt")})


class Text(NamedTuple):
    """The ids of both sides, the same for every contender."""

    store: TokenStore
    train: np.ndarray  # (N,)
    val: np.ndarray  # (M,)
    vocab_size: int


class Watch:
    """Counts steps and seconds, and evaluates outside the clock. `most_steps` ends a run that only measures speed."""

    def __init__(
        self, now: Callable[[], float], seconds: float = math.inf, points: int = 0,
        judge: Callable[[nn.Module], float] = lambda model: math.nan, most_steps: float = math.inf,
    ) -> None:  # fmt: skip
        self.now, self.seconds, self.judge, self.most_steps = now, seconds, judge, most_steps
        self.marks = [seconds * (i + 1) / points for i in range(points)]
        self.steps = self.tokens = 0
        self.ends: list[float] = []  # seconds at the end of each step
        self.curve: list[tuple[float, int, float]] = []  # seconds, steps, validation loss
        self._begin = now()

    def start(self) -> None:
        """Call right before the first step."""
        self._begin = self.now()

    def after_step(self, model: nn.Module, tokens: int) -> bool:
        """Call after each step with what gives logits for ids (B, T); True: stop now."""
        self.ends.append(self.now() - self._begin)
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        if len(self.curve) < len(self.marks) and self.ends[-1] >= self.marks[len(self.curve)]:
            self._evaluate(model)
        return self.ends[-1] >= self.seconds or self.steps >= self.most_steps

    def finish(self, model: nn.Module) -> None:
        """Call at the end of the training."""
        if self.marks and (not self.curve or self.curve[-1][1] < self.steps):
            self._evaluate(model)

    def seconds_per_step(self) -> float:
        """Mean over the steps after the first few, or over all where there are no more."""
        first = WARM if len(self.ends) > WARM else 0
        spent = self.ends[-1] - (self.ends[first - 1] if first else 0.0)
        return max(1e-6, spent) / (len(self.ends) - first)

    def _evaluate(self, model: nn.Module) -> None:
        paused = self.now()
        self.curve.append((self.ends[-1], self.steps, self.judge(model)))
        self._begin += self.now() - paused


def text_words(task: str, data: Path, block: int) -> list[str]:
    """The settings that name a task's training and validation text. Raises ValueError where they are missing.

    Characters: the first 90 % of tiny Shakespeare are learned, the rest validates. BPE: the validation split of
    WikiText-2 is learned and its test split validates.
    """
    folder, files = data, ("wikitext2-valid.txt", "wikitext2-test.txt")
    wanted = ["tinyshakespeare.txt"] if task == "shakespeare-char" else list(files)
    if missing := [name for name in wanted if not (data / name).is_file()]:
        raise ValueError(f"{data} has no {' and no '.join(missing)}: name the folder that does with --data FOLDER")
    if task == "shakespeare-char":
        text = (data / wanted[0]).read_text(encoding="utf-8")
        cut = len(text) * 9 // 10
        folder, files = cache_dir() / "benchmarks" / sha256_json(text)[:16], ("train.txt", "val.txt")
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in zip(files, (text[:cut], text[cut:]), strict=True):
            write_atomic(folder / name, part)
    return [
        "data.source=text", f"data.path={folder / files[0]}", f"data.val_from={folder / files[1]}",
        "data.document=file", "data.separator=nothing", "data.duplicates=ignore", f"data.seq_len={block}", *TASKS[task],
    ]  # fmt: skip


def our_config(job: Job, *more: str) -> RunConfig:
    """The settings of a run of ours: the recipe, then the job's words, then `more`."""
    own = ["train.device=cpu", f"train.threads={job.threads}", f"train.seed={job.seed}", *OWN]
    return load_config(file=job.recipe or None, overrides=[*job.words, *own, *more])


def identify(job: Job, known: str = "") -> str:
    """Hash of every setting of a run and of its text; `known` is what else decides how a contender trains."""
    settings = our_config(job).model_dump(exclude={"run_dir"})
    texts = [Path(settings["data"].pop(name)).read_text(encoding="utf-8") for name in ("path", "val_from")]
    return sha256_json([settings, texts, known])


def open_text(config: DataConfig) -> Text:
    """Both sides as ids, through the package's own data path."""
    store = open_store(config)
    return Text(store, np.asarray(store.train), np.asarray(store.val), store.tokenizer.vocab_size)


def judge_on(text: Text, block: int) -> Callable[[nn.Module], float]:
    """Loss in fp32 over all validation text in blocks that do not overlap, each token predicted once."""
    batches = TaskBatches(EvalBatches(text.val, block, max(1, EVAL_TOKENS // block)))

    def judge(model: nn.Module) -> float:
        found = evaluate(model, batches, torch.device("cpu"), nullcontext)
        return math.nan if found is None else found.loss

    return judge


class Shown(Trainer):
    """A trainer that can be found: `run_training` keeps its own to itself, and a curve needs the weights on the way."""

    last: ClassVar[Trainer]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Shown.last = self


def ours(job: Job, text: Text, watch: Watch) -> str:
    """Our trainer with the job's settings; its schedule ends when the seconds do, by its own measured speed.

    Gives back what it was made with, in words.
    """
    run.Trainer = Shown  # type: ignore[misc]
    said = _train(job, watch, job.steps or _affordable(job, watch))
    with Shown.last.average.in_place():  # the weights that would be used
        watch.finish(Shown.last.model)
    return said


def _affordable(job: Job, watch: Watch) -> int:
    """How many steps the seconds allow, by a measurement outside the clock."""
    # To `auto` a schedule that long would be worth compiling, which takes a minute and is not what follows.
    plain = replace(job, words=(*job.words, 'train.compile="off"'))
    guess = max(1, int(watch.seconds / _pace(plain, watch.now, FAR, (0,), WARM)))
    starts = np.linspace(0, max(0, guess - TIMED), PLACES, dtype=int).tolist()
    return max(1, int(USED * watch.seconds / _pace(job, watch.now, guess, starts, TIMED // PLACES)))


def _pace(job: Job, now: Callable[[], float], total: int, starts: Sequence[int], each: int) -> float:
    """Seconds of a step, from `each` steps at each of `starts` in a run of `total`, after a few to warm up."""
    watch = Watch(now, most_steps=WARM + each * len(starts))
    # A rate that no warmup led up to may be too high for it, which says nothing about its speed.
    with suppress(FloatingPointError):
        _train(job, watch, total, {WARM + i * each: start for i, start in enumerate(starts)})
    return watch.seconds_per_step()


def _train(job: Job, watch: Watch, total: int, jumps: Mapping[int, int] | None = None) -> str:
    """A run of `total` steps, until it ends or the watch says so; after n steps it goes on at step `jumps[n]`.

    Gives back its number format and, if so, that it was compiled.
    """
    before: tuple[int, int] | None = None  # steps and tokens, as of the last step
    over = False

    def stop() -> int | None:
        nonlocal before, over
        trainer = Shown.last
        progress = trainer.progress
        if before is None:  # asked once before the first step
            watch.start()
        elif progress.step > before[0]:  # else it is asked within an evaluation
            # The run's own evaluation at its end is left out: the watch makes one.
            with trainer.average.in_place():
                over = watch.after_step(trainer.model, progress.tokens - before[1]) or progress.step >= total
            progress.step = (jumps or {}).get(watch.steps, progress.step)
        before = progress.step, progress.tokens
        return signal.SIGINT if over else None

    with tempfile.TemporaryDirectory() as folder:
        run.run_training(our_config(job, f"train.max_steps={total}", f"run_dir={folder}/run"), stop)
        precision, compiled = made_with(RunFolder(f"{folder}/run"))
        return precision + ", compiled" * compiled


def do_job(job: Job, contender: Callable[[Job, Text, Watch], str]) -> dict[str, Any]:
    """Train as the job says, in this process: {"curve", "steps", "tokens", "seconds", "parameters", ...}."""
    torch.set_num_threads(job.threads)
    config = our_config(job)
    text = open_text(config.data)
    seen = [0]
    loss = judge_on(text, config.data.seq_len)

    def judge(model: nn.Module) -> float:
        seen[0] = sum(p.numel() for p in model.parameters())  # a tied table counts once
        return loss(model)

    watch = Watch(CLOCKS[job.clock], job.seconds, job.points, judge)
    said = contender(job, text, watch)
    return {
        "curve": watch.curve, "steps": watch.steps, "tokens": watch.tokens, "seconds": watch.ends[-1],
        "parameters": seen[0], "train_tokens": len(text.train), "val_tokens": len(text.val), "vocab": text.vocab_size,
        "made_with": said,
    }  # fmt: skip


def do_jobs(jobs: Sequence[Job], keep: Path | None = None) -> dict[Job, dict[str, Any]]:
    """Each job in a fresh process, one after the other; results that `keep` (JSONL) has are taken from there.

    A run that fails has {"error": why} and is tried again next time.
    """
    kept = {}
    if keep and keep.is_file():
        for line in keep.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that was killed while writing
                continue
            kept[row["key"]] = row["result"]
    results: dict[Job, dict[str, Any]] = {}
    with workplace() as folder:
        for i, job in enumerate(jobs):
            result = kept.get(job.key) or _in_process(job, folder)
            results[job] = result
            if keep and "error" not in result and job.key not in kept:
                keep.parent.mkdir(parents=True, exist_ok=True)
                with keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": job.key, "job": asdict(job), "result": result}) + "\n")
            told = result.get("error") or f"loss {result['curve'][-1][2]:.4f}, {result['steps']:,} steps"
            print(f"{i + 1}/{len(jobs)} {job.name}, seed {job.seed}: {told}", file=sys.stderr, flush=True)
    return results


def _in_process(job: Job, folder: Path) -> dict[str, Any]:
    words, threads = [sys.executable, str(HERE / "time_to_loss.py"), "--job"], str(job.threads)
    settings = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = call(words, folder, settings, input=json.dumps(asdict(job)))
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1] if lines else f"it ended with {done.returncode}"
        return {"error": why.replace("|", "/")}  # it stands in a table
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean (Student's t); None for fewer than two values."""
    n = len(values) - 1
    if n < 1:
        return None
    exact = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    t = exact[n - 1] if n <= len(exact) else 1.96 + 2.37 / n + 2.8 / n**2  # within 0.002 of the table
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Median (least to most) in words."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def machine(job: Job) -> str:
    """What it was measured on."""
    at = environment()
    return (
        f"{at['processor']}, {at['cores']} cores, {torch.backends.cpu.get_cpu_capability()}; {job.threads} thread"
        f"{'s' * (job.threads > 1)}; Python {at['python']}, torch {torch.__version__}"
    )


def parser(description: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The words that both benchmarks know."""
    known = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = known.add_argument
    add("--task", choices=TASKS, default="shakespeare-char")
    add("--threads", type=int, default=1)
    add("--seconds", type=float, default=60.0, help="of training, by the clock")
    add("--clock", choices=CLOCKS, default="cpu", help="cpu: seconds of the process, all its threads")
    add("--seeds", type=_whole_numbers, default=list(seeds), metavar="N,N,...")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours, repeatable")
    add("--data", type=Path, default=DATA, help="folder with tinyshakespeare.txt or WikiText-2's two files")
    add("--keep", type=Path, help="JSONL with the runs that are done: they are not repeated")
    add("--out", type=Path, help="the table, as .md")
    return known


def to_repeat(words: Sequence[str]) -> str:
    """The words of a command line without those that only say where something lies on this machine."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        if word in PLACES_HERE:
            next(rest, None)
            kept += ["--nanogpt", "PATH"] if word == "--nanogpt" else []
        else:
            kept.append(word)
    return " ".join(kept)


def _whole_numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def failures(found: Sequence[Mapping[str, Any]]) -> str:
    """What stands behind a cell when some of its runs failed."""
    failed = [result["error"] for result in found if "error" in result]
    return f"; {len(failed)} of {len(found)} runs failed: {failed[0]}" if failed else ""
