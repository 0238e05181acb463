"""Start a worker for a run and watch the folder it writes; trains nothing itself and imports no torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from utils.config.schema import RunConfig
from utils.data.storing.run_store import remember_store, remembered_store
from utils.data.storing.token_store import Progress, TokenStore, for_settings, open_store
from utils.jobs.box import Box, Limits
from utils.jobs.describe import consents, last_bytes, plain, start_for
from utils.jobs.find_model import FoundModel
from utils.jobs.prepare import Prepared, place, prepare
from utils.jobs.worker import BUSY
from utils.models.source_files import SOURCE
from utils.runs.folder import RunFolder
from utils.runs.lock import holder, is_locked
from utils.runtime.environment import environment, without_secrets
from utils.runtime.files import cache_dir, remove_tree
from utils.runtime.process import is_same

POLL = 0.2  # seconds
ROOT = Path(__file__).parents[2]


@dataclass
class Job:
    """A run and the process that trains it: our own child, or (child=None) one that somebody else started."""

    run: RunFolder
    child: subprocess.Popen[bytes] | None = None
    is_new: bool = False  # whether the run folder was made for this job
    box: Box | None = None  # the walls around the child, where it runs a stranger's model.py
    notes: tuple[str, ...] = ()  # what was changed in the settings to fit a model from elsewhere

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
        elif (pid := holder(self.run.path)) is not None:
            os.kill(pid, number)  # the kernel says who it is: a boxed worker could write anything into its state
        elif is_locked(self.run.path) and is_same(process := self.run.state().get("process") or {}):
            os.kill(process["pid"], number)  # never a stranger that was given the same pid

    def result(self) -> tuple[int, str]:
        """Exit code (0 completed, 1 failed, 2 wrong request, 128 + n by signal n) and, if it failed, why.

        Call it when `watch` has ended. A run that this launch began is removed if its request was wrong.
        """
        if self.child is None:
            code = {"completed": 0, "failed": 1}.get(self.run.status(), 128 + signal.SIGINT)
            return code, plain(str(self.run.state().get("message") or "it failed")) if code == 1 else ""
        code = self.child.wait()
        if self.box is not None:
            code = self.box.close().code
        if code < 0:
            return 128 - code, f"the worker was killed by {signal.Signals(-code).name} (was there too little memory?)"
        words = self._last_words() if code in (1, 2) or 70 <= code < 75 else ""
        if code == 2 and self.is_new:
            remove_tree(self.run.path)
        return code, words

    def _last_words(self) -> str:
        """What follows the last `error: ` of the log, where a worker says why it failed."""
        text = last_bytes(self.run.log).decode("utf-8", errors="replace")
        return plain(f"\n{text}".rpartition("\nerror: ")[2].strip()) or "the worker left no word"


def launch(config: RunConfig, own_session: bool = False, progress: Progress | None = None) -> Job:
    """Start the worker for `config`, or join the one that is at it; a completed run is left as it is.

    `own_session` lets the worker outlive this process and its terminal; `progress` hears how far the data are. A model
    from elsewhere trains behind walls (`box.py`), its code or not. What a request can get wrong is looked at first:
    ValueError or FileNotFoundError leave nothing behind.
    """
    prepared = prepare(config)
    config, run = prepared.config, RunFolder(config.run_dir)
    run.check_settings(config)
    store = _open_data(prepared, progress)
    is_new = not run.exists()
    run.create(config)
    place(prepared)
    remember_store(run, store)
    notes = (*prepared.notes, *(f"data: {words}" for words in store.warnings())) if is_new else prepared.notes
    if is_locked(run.path) or run.status() == "completed":
        return Job(run, notes=notes)
    if prepared.found is not None:
        if not run.read_json("environment"):
            run.write_json("environment", environment())
        try:
            box = _start_boxed(run, in_run(run, prepared.found), config.model.trust_sha256, store, own_session)
        except ValueError:  # its code may not run here
            if is_new:
                remove_tree(run.path)
            raise
        return Job(run, box.process, is_new, box, notes)
    variables = without_secrets()
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with run.log.open("ab") as log:
        child = subprocess.Popen(
            # -P: a file of the user's own named utils.py or queue.py in this folder is not ours
            [sys.executable, "-P", "-m", "utils.jobs.worker", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=variables,
            start_new_session=own_session,
        )
    return Job(run, child, is_new, notes=notes)


def prepare_inline(config: RunConfig) -> RunConfig:
    """Settings that `run_training` can take in this very process, their model in the run folder if it has files.

    Raises ValueError for a stranger's model.py nobody consented to: here it would run without walls.
    """
    prepared = prepare(config)
    run, found = RunFolder(config.run_dir), prepared.found
    if found is not None and not consents(found, config.model.trust_sha256):
        raise ValueError(
            f"--inline runs {found.code} in this process, without walls: leave --inline out, or read the file and "
            f"consent to it with --trust-sha256 {found.sha256}"
        )
    run.check_settings(prepared.config)
    store = _open_data(prepared)
    run.create(prepared.config)
    remember_store(run, store)
    if found is not None:
        place(prepared)
        consents(in_run(run, found), config.model.trust_sha256)
    return prepared.config


def _open_data(prepared: Prepared, progress: Progress | None = None) -> TokenStore:
    """The run's tokens, made now if need be: the worker that reads them has neither network nor the text."""
    run, data = RunFolder(prepared.config.run_dir), prepared.config.data
    try:
        store = open_store(data, prepared.own_tokenizer, progress)
    except FileNotFoundError:  # the text is gone: a run that has begun goes on with the tokens made of it
        known = remembered_store(run, below=cache_dir() / "tokens")
        if known is None:
            raise
        store = for_settings(known, data)
    prepared.check_tokenizer(store.tokenizer)
    run.check_data(store.fingerprint)
    return store


def in_run(run: RunFolder, found: FoundModel) -> FoundModel:
    """The model as it lies in the run, which is what the worker builds, and so what a consent has to be to."""
    return replace(found, where=str(run.path / SOURCE))


def _start_boxed(run: RunFolder, found: FoundModel, trust_sha256: str, store: TokenStore, own_session: bool) -> Box:
    with run.log.open("ab") as log:
        return start_for(
            found,
            trust_sha256,
            "utils.jobs.worker:main",
            {"folder": str(run.path.resolve()), "where": os.getcwd()},
            read=[store.folder],
            write=[run.path],
            limits=Limits(memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
            stdout=log,
            stderr=log,
            own_session=own_session,
        )
