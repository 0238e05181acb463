"""Start a worker for a run and watch the folder it writes; trains nothing itself and imports no torch."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.config.schema import RunConfig
from utils.data.token_store import open_store
from utils.jobs.worker import BUSY
from utils.runs.folder import RunFolder
from utils.runs.lock import is_locked
from utils.runtime.process import is_same

POLL = 0.2  # seconds
SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|AUTH|KEY|_PAT$|_URL$|_DSN$", re.IGNORECASE)
ROOT = Path(__file__).parents[2]


@dataclass
class Job:
    """A run and the process that trains it: our own child, or (child=None) one that somebody else started."""

    run: RunFolder
    child: subprocess.Popen[bytes] | None = None
    is_new: bool = False  # whether the run folder was made for this job

    def alive(self) -> bool:
        """Whether the worker still runs."""
        return is_locked(self.run.path) if self.child is None else self.child.poll() is None

    def watch(self) -> Iterator[RunFolder]:
        """The run again and again while it lives, and once more when it has ended."""
        while self.alive():
            yield self.run
            time.sleep(POLL)
        if self.child is not None and self.child.returncode == BUSY:
            self.child = None  # another worker was faster: it is the same run, so watch that one
            yield from self.watch()
        else:
            yield self.run

    def started(self) -> bool:
        """Wait until the worker trains; False if it ended before it did."""
        return any(run.state().get("status") == "running" for run in self.watch())

    def send(self, number: int) -> None:
        """Pass a signal on to the worker: INT, TERM and HUP make it save and leave."""
        if self.child is not None:
            self.child.send_signal(number)
        elif is_locked(self.run.path) and is_same(process := self.run.state().get("process", {})):
            os.kill(process["pid"], number)  # never a stranger that was given the same pid

    def result(self) -> tuple[int, str]:
        """Exit code (0 completed, 1 failed, 2 wrong request, 128 + n by signal n) and, if it failed, why.

        Call it when `watch` has ended. A run that this launch began is removed if its request was wrong.
        """
        if self.child is None:
            code = {"completed": 0, "failed": 1}.get(self.run.status(), 128 + signal.SIGINT)
            return code, str(self.run.state().get("message") or "it failed") if code == 1 else ""
        code = self.child.wait()
        if code < 0:
            return 128 - code, f"the worker was killed by {signal.Signals(-code).name} (was there too little memory?)"
        words = self._last_words() if code in (1, 2) else ""
        if code == 2 and self.is_new:
            shutil.rmtree(self.run.path, ignore_errors=True)
        return code, words

    def _last_words(self) -> str:
        """What follows the last `error: ` of the log, where a worker says why it failed."""
        text = self.run.log.read_text(encoding="utf-8", errors="replace")
        return f"\n{text}".rpartition("\nerror: ")[2].strip() or "the worker left no word"


def launch(config: RunConfig, own_session: bool = False) -> Job:
    """Start the worker for `config`, or join the one that is at it; a completed run is left as it is.

    `own_session` lets the worker outlive this process and its terminal. What a request can get wrong is looked at
    first: ValueError or FileNotFoundError leave nothing behind.
    """
    run = RunFolder(config.run_dir)
    run.check_settings(config)
    run.check_data(open_store(config.data).fingerprint)
    is_new = not run.exists()
    run.create(config)
    if is_locked(run.path) or run.status() == "completed":
        return Job(run)
    environment = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with run.log.open("ab") as log:
        child = subprocess.Popen(
            # -P: a file of the user's own named utils.py or queue.py in this folder is not ours
            [sys.executable, "-P", "-m", "utils.jobs.worker", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=own_session,
        )
    return Job(run, child, is_new)
