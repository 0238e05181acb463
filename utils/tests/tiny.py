"""The smallest runs that still mean something, and what tests compare of them."""

import hashlib
from pathlib import Path

from utils.config.load import load_config
from utils.config.schema import RunConfig
from utils.runs.checkpoints import find_checkpoint
from utils.runs.folder import RunFolder
from utils.runs.progress import PARTS

# With dropout, accumulation and every cadence on: what could disturb a resumed run is there to disturb it.
TINY = (
    "model.shape.n_embd=16", "model.shape.n_layer=1", "model.shape.block_size=16", "model.shape.dropout=0.1",
    "data.size=20000", "data.seq_len=16", "train.max_steps=12", "train.batch_size=4", "train.grad_accum_steps=2",
    "train.warmup_steps=2", "train.eval_every=4", "train.eval_batches=3", "train.save_every=4", "train.log_every=1",
    "train.sample_every=6", "train.sample_tokens=8", "train.threads=1",
)  # fmt: skip
TIMES = tuple(f"time/{part}" for part in PARTS)
CLOCK = ("tokens_per_second", "mfu", "attempt", *TIMES)  # what may differ between two equal runs


def tiny_config(run_dir: Path, *overrides: str) -> RunConfig:
    """A run of a second."""
    return load_config("debug", overrides=[*TINY, *overrides, f"run_dir={run_dir}"])


def weights_hash(run: Path, which: str = "latest") -> str:
    """sha256 of all weights of a checkpoint (where they are averaged, of both) and its optimizer state."""
    folder = find_checkpoint(run / "checkpoints", which)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))).hexdigest()


def metrics_of(run: Path) -> list[dict]:
    """A run's metrics without what a clock decides."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in RunFolder(run).metrics()]


def samples_of(run: Path) -> dict[int, str]:
    """What the model wrote, by step."""
    return {event["step"]: event["text"] for event in RunFolder(run).events("sample")}
