"""The run folder: what one training run leaves on disk, and how to read it. No torch.

Layout: config.yaml meta.json environment.json state.json metrics.jsonl events.jsonl layers.jsonl log.txt
checkpoints/
One worker writes it (it holds run.lock); everybody else only reads.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from utils.config.load import ConfigError, differences, dump_config, parse_config
from utils.config.schema import RunConfig
from utils.runs.layers import clean_rows
from utils.runs.lock import is_locked
from utils.runs.progress import PARTS
from utils.runs.rows import ROLLED_BACK, LastRows
from utils.runtime.files import read_regular, retried, write_atomic

# Whoever wrote a run may have run a stranger's code: sizes in bytes are limited, and so is what a value can be.
MOST_JSON, MOST_ROWS, MOST_SETTINGS = 16_000_000, 1 << 28, 1_000_000
STATUSES = ("queued", "running", "interrupted", "completed", "failed")
COUNTS = ("step", "total_steps", "best_step", "attempt")
NUMBERS = ("train_loss", "val_loss", "best_val_loss", "entropy_floor", "characters_per_token", "tokens_per_second",
           "eta_seconds", "mfu", "peak_memory", *(f"share/{part}" for part in PARTS))  # fmt: skip
LARGEST, MOST_STEPS = 1e300, 10**15
MOST_UNSYNCED = 1 << 22  # bytes of rows that may not be on the disk yet
METRICS_FILE, LAYERS_FILE = "metrics.jsonl", "layers.jsonl"
Row = dict[str, Any]


def now() -> str:
    """The time in UTC, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RunFolder:
    """A run on disk. Reading never writes, and works while the run is going on or after it was killed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.txt"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    def exists(self) -> bool:
        """Whether this is a run: a folder that holds the settings."""
        return (self.path / "config.yaml").is_file()

    # -- written by the worker ---------------------------------------------------------------------

    def check_settings(self, config: RunConfig) -> None:
        """Raise ValueError if the folder holds a run with other settings, or something that is not a run."""
        if self.exists():
            changed = differences(self.config(), config)
            if changed:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({'; '.join(changed)}): "
                    "give the old settings to go on with it, or another --run-dir to start a new run"
                )
        elif self.path.exists() and (not self.path.is_dir() or not all(map(_is_remnant, self.path.iterdir()))):
            raise ValueError(f"{self.path} exists and is not a run folder: choose another --run-dir")

    def check_data(self, fingerprint: str) -> None:
        """Raise ValueError if the run has seen other text, or the same text cut into other tokens."""
        known = self.read_json("meta").get("data", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"{self.path} was trained on other text (fingerprint {known}; the text now gives {fingerprint}): "
                "bring the old text back to go on with it, or give another --run-dir to start a new run"
            )

    def create(self, config: RunConfig) -> None:
        """Make the folder and write every setting into it, before anything else happens.

        Raises ValueError, and leaves nothing, where the folder cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "config.yaml", dump_config(config))
        except OSError as error:
            for path in (self.checkpoints, self.path):
                with contextlib.suppress(OSError):  # only what is empty goes
                    path.rmdir()
            raise ValueError(
                f"the run folder {self.path} cannot be written ({error.strerror}): choose another --run-dir"
            ) from None

    def write_json(self, name: str, value: Row, durable: bool = True) -> None:
        """Replace NAME.json in one instant."""
        finite = {key: _finite(item) for key, item in value.items()}
        write_atomic(self.path / f"{name}.json", json.dumps(finite, indent=2, allow_nan=False) + "\n", durable)

    # -- read by anybody ---------------------------------------------------------------------------

    def config(self) -> RunConfig:
        """The settings the run was started with. Raises ConfigError, FileNotFoundError."""
        try:
            return parse_config(read_regular(self.path / "config.yaml", MOST_SETTINGS).decode("utf-8"))
        except (UnicodeDecodeError, RecursionError):
            raise ConfigError([f"{self.path / 'config.yaml'} holds no settings that can be read"]) from None

    def read_json(self, name: str) -> Row:
        """NAME.json, or {} where there is none yet."""
        try:
            value = json.loads(read_regular(self.path / f"{name}.json", MOST_JSON))
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def state(self) -> Row:
        """The last state written: status, step, losses, speed, process; a value of a wrong type counts as none."""
        return {key: value for key, value in self.read_json("state").items() if _fits(key, value)}

    def status(self) -> str:
        """queued, running, interrupted, completed or failed; a worker that died is `interrupted`."""
        said = str(self.state().get("status", "queued"))
        if said in ("queued", "running") and not is_locked(self.path):
            return "interrupted"
        return said

    def metrics(self) -> list[Row]:
        """Rows by step. Steps done twice, because a run was killed or went back, count once: the last time."""
        rows = LastRows()
        for row in read_lines(self.path / METRICS_FILE):
            step, kind = row.get("step"), row.get("kind")
            if not _is_count(step):
                continue
            if kind == ROLLED_BACK:
                rows.go_back(step)
            elif kind in ("train", "val"):
                numbers = {key: value if _is_number(value) else None for key, value in row.items() if key != "kind"}
                rows.add(step, kind, {"kind": kind, **numbers})
        return rows.in_order()

    def layers(self) -> list[Row]:
        """What steps did to each layer, by step: name, shape, size, norms, histogram (`utils.runs.layers`)."""
        return clean_rows(read_lines(self.path / LAYERS_FILE))

    def events(self, *kinds: str) -> list[Row]:
        """What happened, in order; only some kinds if named."""
        rows = (row for row in read_lines(self.path / "events.jsonl") if isinstance(row.get("event"), str))
        shaped = (row for row in rows if _is_count(row.get("step", 0)) and isinstance(row.get("text", ""), str))
        return [row for row in shaped if not kinds or row["event"] in kinds]


class RowWriter:
    """Appends JSON rows to a file. Each row is one write: a kill leaves at most one torn last line.

    Where the disk takes nothing (full, away), rows wait in memory and follow with the next one that it takes. The file
    is made for the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._waiting = path, bytearray()
        self._unsynced = bytearray()  # taken, and not known to be on the disk
        self._is_doubtful = False  # whether a sync has failed, after which the system may have dropped what it took
        self._descriptor: int | None = None
        self._end = 0  # of the file

    def write(self, row: Row) -> None:
        """Append one row. NaN and infinity become null: they are not JSON."""
        self._waiting += json.dumps({key: _finite(value) for key, value in row.items()}).encode() + b"\n"
        with contextlib.suppress(OSError):  # `sync` says so
            self._flush()
            if len(self._unsynced) > MOST_UNSYNCED:
                self._sync()

    def sync(self) -> None:
        """Put all rows so far on the disk. Raises OSError where it does not take them."""
        retried(self._sync)

    def close(self) -> None:
        """Close the file. Raises OSError where rows still wait."""
        try:
            retried(self._flush)
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._end = os.fstat(descriptor).st_size
        if self._end and os.pread(descriptor, 1, self._end - 1) != b"\n":
            self._waiting[:0] = b"\n"  # or the next row would fuse with the torn one
        return descriptor

    def _flush(self) -> None:
        if self._waiting and self._descriptor is None:
            self._descriptor = self._open()
        while self._waiting:  # a row that was taken in part is gone on with where it broke off
            assert self._descriptor is not None
            try:
                os.write(self._descriptor, self._waiting)
            finally:  # the file itself says how much was taken: some systems take a part and say that it failed
                taken = max(0, os.fstat(self._descriptor).st_size - self._end)
                self._end += taken
                self._unsynced += self._waiting[:taken]
                del self._waiting[:taken]

    def _sync(self) -> None:
        self._flush()
        if self._descriptor is None:
            return  # no row yet
        if self._is_doubtful:  # the same bytes in the same place once more, or a second sync would promise too much
            with self._path.open("r+b") as file:
                file.seek(self._end - len(self._unsynced))
                file.write(self._unsynced)
        self._is_doubtful = True
        os.fsync(self._descriptor)
        self._is_doubtful = False
        self._unsynced.clear()


def read_lines(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl file; torn lines are passed over, a missing file is empty."""
    try:
        data = read_regular(path, MOST_ROWS)
    except FileNotFoundError:
        return
    for line in io.BytesIO(data):  # one at a time: a list of all would be many times as large
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def list_runs(root: str | Path) -> list[RunFolder]:
    """The runs in a folder, the most recently active first."""
    folders = [RunFolder(path) for path in Path(root).glob("*") if path.is_dir()]
    runs = [run for run in folders if run.exists()]
    return sorted(runs, key=lambda run: (str(run.state().get("updated", "")), run.name), reverse=True)


def open_run(path: str | Path) -> RunFolder:
    """The run at a path. Raises FileNotFoundError that says what is there instead."""
    run = RunFolder(path)
    if run.exists():
        return run
    others = [str(other.path) for other in list_runs(run.path.parent)][:5]
    hint = f"; runs there: {', '.join(others)}" if others else "; no runs there yet: `tbt train` makes one"
    raise FileNotFoundError(f"no run at {path}{hint}")


def latest_run(root: str | Path = "runs") -> RunFolder:
    """The run in a folder that was active last. Raises FileNotFoundError if there is none."""
    runs = list_runs(root)
    if not runs:
        raise FileNotFoundError(f"no runs in {root}/ yet: `tbt train` makes one")
    return runs[0]


def _is_remnant(path: Path) -> bool:
    """Whether this is what `create` leaves when it is killed before the settings have their name."""
    is_empty = path.name == "checkpoints" and path.is_dir() and not any(path.iterdir())
    return is_empty or path.name.startswith("config.yaml.tmp-")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value - value != 0.0 else value


def _fits(key: str, value: Any) -> bool:
    """Whether this can be what state.json holds under that key, so that it can be shown without a second look."""
    if value is None:
        return True
    if key == "status":
        return value in STATUSES
    if key == "process":
        return isinstance(value, dict) and _is_count(value.get("pid", 0))
    if key in COUNTS:
        return _is_count(value)
    return _is_number(value) if key in NUMBERS else isinstance(value, str | bool) or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST  # not so NaN


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_STEPS
