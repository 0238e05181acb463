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
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
ROOT = Path(__file__).parents[2]


@dataclass
class Job:
    """A run and the process that trains it: our own child, or (child=None) one that somebody else started."""

    run: RunFolder
    child: subprocess.Popen[bytes] | None = None

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

    def send(self, number: int) -> None:
        """Pass a signal on to the worker: INT, TERM and HUP make it save and leave."""
        if self.child is not None:
            self.child.send_signal(number)
        else:
            process = self.run.state().get("process", {})
            if is_same(process):  # never a stranger that was given the same pid
                os.kill(process["pid"], number)

    def result(self) -> tuple[int, str]:
        """Exit code (0 completed, 1 failed, 2 wrong request, 128 + n by signal n) and, if it failed, why.

        Call it when `watch` has ended. A run whose request turned out to be wrong before it began is removed.
        """
        if self.child is None:
            code = {"completed": 0, "failed": 1}.get(self.run.status(), 128 + signal.SIGINT)
        else:
            code = self.child.wait()
            code = code if code >= 0 else 128 - code
        words = self._last_words() if code in (1, 2) else ""
        if code == 2 and not self.run.state():
            shutil.rmtree(self.run.path, ignore_errors=True)
        return code, words

    def _last_words(self) -> str:
        try:
            lines = self.run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        return (lines[-1] if lines else "the worker left no word").removeprefix("error: ")


def launch(config: RunConfig, own_session: bool = False) -> Job:
    """Start the worker for `config`, or join the one that is at it; a completed run is left as it is.

    `own_session` lets the worker outlive this process and its terminal. What a request can get wrong is looked at
    first: ValueError or FileNotFoundError leave nothing behind.
    """
    run = RunFolder(config.run_dir)
    run.check_settings(config)
    open_store(config.data)
    run.create(config)
    if is_locked(run.path) or run.status() == "completed":
        return Job(run)
    environment = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with run.log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "utils.jobs.worker", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=own_session,
        )
    return Job(run, child)
