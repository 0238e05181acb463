"""Processes that encode units of documents, one for each core, or this one if there is little; knows no sources."""

import hashlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.data.storing.encode import Encoder, Manner, Unit, first_frame, make_shard
from utils.data.storing.shards import Record, done_shard
from utils.data.tokenizing.tokenizer import load_tokenizer
from utils.runtime.environment import without_secrets

ROOT = Path(__file__).parents[3]
WAITING = 2  # units a process has at most: the one it is at, and the next
MOST = 16  # processes; each takes about 150 MB

Done = Callable[[str, Record, int], None]  # the shard's name, its record, how many characters its text has


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Encoders:
    """Encodes units in any order into `folder`; the bytes are the same for any number of processes.

    A unit that is there already, whole and of the same content, is not made again.
    """

    def __init__(self, folder: Path, manner: Manner, processes: int, done: Done, lock: int | None = None) -> None:
        self.folder, self.manner, self.done, self.lock = folder, manner, done, lock
        self._workers: list[_Worker] = []
        self._here: Encoder | None = None
        self._wanted = processes if processes > 1 else 0
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> "Encoders":
        try:
            for _ in range(min(self._wanted, MOST)):
                self._workers.append(_Worker(self.folder, self.manner, self.lock))
        except OSError:  # this process may start no other
            self._stop()
        for worker in self._workers:
            self._selector.register(worker.output, selectors.EVENT_READ, worker)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def add(self, unit: Unit, characters: int) -> None:
        """Encode a unit, now or soon."""
        data = unit.to_bytes()
        content = hashlib.sha256(data).hexdigest()
        record = done_shard(self.folder, unit.name, content)
        if record is not None:
            self.done(unit.name, record, characters)
        elif not self._workers:
            self._here = self._here or Encoder(load_tokenizer(self.folder), self.manner.dtype)
            self.done(unit.name, make_shard(self.folder, unit, content, self.manner, self._here), characters)
        else:
            while min(len(worker.waiting) for worker in self._workers) >= WAITING:
                self._collect()
            worker = min(self._workers, key=lambda each: len(each.waiting))
            worker.waiting.append(characters)
            worker.send(data)

    def finish(self) -> None:
        """Wait until all is done."""
        while any(worker.waiting for worker in self._workers):
            self._collect()

    def _collect(self) -> None:
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            for answer in worker.answers():
                self.done(answer["name"], answer["record"], worker.waiting.pop(0))

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []
        self._selector.close()


class _Worker:
    """One process that encodes. It dies with its input, and so with this process."""

    def __init__(self, folder: Path, manner: Manner, lock: int | None) -> None:
        self.waiting: list[int] = []  # characters of each unit it has
        self._begun = b""  # of a line of its answers
        self.words = tempfile.TemporaryFile()  # noqa: SIM115 - what it says when it fails
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            # -P: a file of the user's own named utils.py or queue.py in this folder is not ours
            [sys.executable, "-P", "-m", "utils.data.storing.encode"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            env={**without_secrets(), "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
            # As long as it lives nobody else builds here, even if this process was killed.
            pass_fds=() if lock is None else (lock,),
        )
        assert self.process.stdin
        assert self.process.stdout
        self.input: BinaryIO = self.process.stdin  # type: ignore[assignment]
        self.output: BinaryIO = self.process.stdout  # type: ignore[assignment]
        self.send(first_frame(folder, manner))

    def send(self, data: bytes) -> None:
        try:
            self.input.write(len(data).to_bytes(8, "big"))
            self.input.write(data)
            self.input.flush()
        except BrokenPipeError:
            raise ValueError(self._why()) from None

    def answers(self) -> Iterator[dict[str, Any]]:
        """What it says of the units it has done. Raises OSError or ValueError for what went wrong there."""
        # Not through a buffer, where a second answer could lie unseen while the pipe looks empty.
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            raise ValueError(self._why())
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            answer: dict[str, Any] = json.loads(line)
            if "errno" in answer:
                raise OSError(answer["errno"], answer["error"], answer["file"])
            if "error" in answer:
                raise ValueError(f"the text cannot be encoded: {answer['error']}")
            yield answer

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.words.close()

    def _why(self) -> str:
        code = self.process.wait()
        self.words.seek(0)
        said = self.words.read().decode(errors="replace").strip().splitlines()[-1:]
        if code < 0:
            return (
                f"a process that encodes was killed by signal {-code} (was there too little memory?): what is done is "
                "kept, and the same command goes on from there"
            )
        return f"a process that encodes ended with code {code}: {said[0] if said else 'it left no word'}"
