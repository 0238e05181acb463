"""What a worker writes while it trains: metrics, events, state. The only writer of its run folder."""

import contextlib
import time
from typing import Any

from utils.runs.folder import LAYERS_FILE, METRICS_FILE, RowWriter, RunFolder, now
from utils.runs.rows import ROLLED_BACK
from utils.runtime.process import identity

STATE_EVERY = 0.5  # seconds between changes of state.json that nobody waits for


class Recorder:
    """Writes rows as they happen; one for each attempt (a start, or a resume) of a run."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.attempt = 1 + len(run.events("started", "resumed"))
        self._metrics = RowWriter(run.path / METRICS_FILE)
        self._events = RowWriter(run.path / "events.jsonl")
        self._layers: RowWriter | None = None  # made when there is something to write
        self._state: dict[str, Any] = {**run.state(), "process": identity(), "attempt": self.attempt}
        self._written = 0.0

    def train(self, step: int, **values: float) -> None:
        """One row of training metrics, after optimizer step `step`."""
        self._metrics.write({"step": step, "kind": "train", **values, "attempt": self.attempt})

    def val(self, step: int, **values: float) -> None:
        """One row of validation metrics, of the weights after optimizer step `step`."""
        self._metrics.write({"step": step, "kind": "val", **values, "attempt": self.attempt})

    def layers(self, step: int, rows: list[dict[str, Any]]) -> None:
        """What optimizer step `step` did to each layer: see `utils.runs.layers`."""
        self._layers = self._layers or RowWriter(self.run.path / LAYERS_FILE)
        for row in rows:
            self._layers.write({"step": step, **row, "attempt": self.attempt})

    def rolled_back(self, to: int) -> None:
        """The run goes on from optimizer step `to`: rows of later steps, in whatever attempt, count no more."""
        if self._layers is None and (self.run.path / LAYERS_FILE).exists():
            self._layers = RowWriter(self.run.path / LAYERS_FILE)
        for writer in filter(None, (self._metrics, self._layers)):
            writer.write({"step": to, "kind": ROLLED_BACK, "attempt": self.attempt})

    def event(self, what: str, **details: Any) -> None:
        """Something that happened: started, resumed, saved, sample, alert, finished ..."""
        self._events.write({"time": now(), "event": what, "attempt": self.attempt, **details})

    def state(self, urgent: bool = False, **changes: Any) -> None:
        """Change state.json; changes that are not urgent may wait until the next one."""
        self._state |= changes
        if urgent or time.monotonic() - self._written >= STATE_EVERY:
            with contextlib.suppress(OSError):  # a disk that is full is no reason to stop: the next one tells more
                self.run.write_json("state", {**self._state, "updated": now()}, durable=False)
            self._written = time.monotonic()

    def sync(self) -> None:
        """Put all rows on the disk: called before a checkpoint says that they happened. Raises OSError."""
        try:
            for writer in self._writers():
                writer.sync()
        except OSError as error:
            words = f"rows could not be written to {self.run.path} ({error.strerror})"
            raise OSError(error.errno, words) from error

    def close(self) -> None:
        """Write what is still waiting and close the files. Raises OSError where it cannot be written."""
        self.state(urgent=True)
        self.sync()
        for writer in self._writers():
            writer.close()

    def _writers(self) -> list[RowWriter]:
        return [self._metrics, self._events, *([self._layers] if self._layers else [])]
