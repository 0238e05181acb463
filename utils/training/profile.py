"""Records some steps with torch's profiler: what each operation took; a failure of it never stops training."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

TENTH = 9  # steps before: the first ones load libraries, compile and find their memory
MOST_ROWS = 40  # operations in the summary


class Profile:
    """Records `steps` steps into `folder`: trace.json for Perfetto or chrome://tracing, and summary.txt.

    It begins at the tenth step, or at once in a run too short for that, and only where the folder has no trace yet: a
    resumed run does not record again. What happens is told to `tell`, as the recorder's events.
    """

    def __init__(self, folder: Path, steps: int, tell: Callable[..., None]) -> None:
        self._folder, self._tell = folder, tell
        self._left = 0 if (folder / "trace.json").exists() else steps
        self._running: profile | None = None
        self._first = self._done = 0

    def before(self, step: int, total_steps: int) -> None:
        """Call before step number `step` (from 0)."""
        if not self._left or self._running or step < (TENTH if total_steps >= TENTH + self._left else 0):
            return
        self._first, self._done = step, 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        try:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes two lines into the log
            self._running = profile(activities=activities)
            self._running.start()
        except Exception as error:  # it talks to drivers and needs rights that a walled process may not have
            self._failed(error)

    def after(self) -> None:
        """Call after it."""
        if self._running:
            self._done += 1
            if self._done >= self._left:
                self.close()

    def close(self) -> None:
        """Write what was recorded, if anything was; call when the run ends, however it does."""
        running, self._running = self._running, None
        if not running:
            return
        self._left = 0
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            running.stop()
            self._folder.mkdir(exist_ok=True)
            (self._folder / "summary.txt").write_text(_summary(running, self._first, self._done), encoding="utf-8")
            partial = self._folder / "trace.json.tmp"
            running.export_chrome_trace(str(partial))
            os.replace(partial, self._folder / "trace.json")
        except Exception as error:
            self._failed(error)
            return
        steps = f"steps {self._first + 1} to {self._first + self._done}"
        self._tell(
            "profiled",
            step=self._first + self._done,
            text=f"{steps} are in profile/trace.json (open it in https://ui.perfetto.dev) and profile/summary.txt",
        )

    def _failed(self, error: Exception) -> None:
        self._running, self._left = None, 0
        self._tell("alert", step=self._first, text=f"the profiler failed, training goes on without it: {error}")


def _summary(running: profile, first: int, steps: int) -> str:
    """A table of the operations that took longest by themselves, without what they called."""
    rows = [row for row in running.key_averages() if not getattr(row, "is_user_annotation", False)]
    kernels = [row for row in rows if row.device_type == DeviceType.CUDA]
    spent = {id(row): float(row.self_device_time_total if kernels else row.self_cpu_time_total) for row in rows}
    rows = sorted(kernels or rows, key=lambda row: spent[id(row)], reverse=True)
    whole = sum(spent[id(row)] for row in rows) or 1.0
    lines = [
        f"Steps {first + 1} to {first + steps}: {whole / 1e6 / max(1, steps):.4g} s per step in the operations of "
        f"{'the GPU' if kernels else 'the processor'}.",
        "Evaluations, samples and saves between these steps are in it. Shares are of an operation's own time, without",
        "what it called.",
        "",
        f"{'share':>7} {'ms per step':>12} {'calls':>7}  operation",
    ]
    for row in rows[:MOST_ROWS]:
        took = spent[id(row)]
        lines.append(f"{took / whole:7.1%} {took / 1e3 / max(1, steps):12.3f} {row.count:7d}  {row.key[:100]}")
    rest = sum(spent[id(row)] for row in rows[MOST_ROWS:])
    if rest:
        lines.append(f"{rest / whole:7.1%} {rest / 1e3 / max(1, steps):12.3f} {'':7}  {len(rows) - MOST_ROWS} others")
    return "\n".join(lines) + "\n"
