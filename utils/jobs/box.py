"""Runs a function in a process of its own with walls around it: for code of people we do not know.

This side holds the rights, the walls are put up by the other side (boxed.py) before it imports anything of theirs.
Imports no torch and knows nothing of models. What the walls are and are not for: docs/untrusted-code.md.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils.jobs.boxed import FAILED, NO_MEMORY
from utils.jobs.trials import Wall, missing
from utils.runtime.files import cache_dir, new_scratch, remove_tree

ROOT = Path(__file__).parents[2]
START = 60  # seconds within which the walls must have been put up and tried
PASSED_ON = ("OMP_NUM_THREADS", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")  # nobody keeps a secret there
Output = int | IO[bytes] | None


class NotIsolated(PermissionError):
    """An essential wall does not stand, and the code was not trusted; nothing of it was run.

    `walls` has what was tried and how it went.
    """

    def __init__(self, walls: Sequence[Wall]):
        self.walls = tuple(walls)
        gone = [wall for wall in walls if wall.wall in missing(list(walls))]
        words = "; ".join(f"{wall.wall} ({wall.how})" for wall in gone) or "no wall was reported"
        super().__init__(
            f"not isolated: on this machine the model's code would not be kept from: {words}. Nothing of it was run. "
            "To run it nevertheless you must trust it as you trust your own: read it, and consent to the sha256 of "
            "exactly this code."
        )


class NotStarted(RuntimeError):
    """The box did not come up; its output says why."""


@dataclass(frozen=True)
class Limits:
    """How much a boxed process may take."""

    memory_bytes: int | None = 8 << 30
    """Of address space, or of private memory where a GPU is; None: all there is."""
    seconds: float | None = None
    """After so long it is killed; None: never."""
    threads: int = 4096
    """At once. Generous, as the kernel counts those of the same user in other containers, too; root's it does not
    count at all. There are never further processes."""
    file_bytes: int = 20 << 30
    """The longest file."""
    open_files: int = 1024
    cpu_seconds: int | None = None


@dataclass(frozen=True)
class Ending:
    """How a boxed process ended."""

    code: int
    """0: it did what it was asked to; below 0: killed by that signal; see boxed.py for the others."""
    words: str
    """Why, for a person; empty where all went well."""


class Box:
    """A boxed process while it runs, and what its walls are. Made by `start_boxed`; a context manager that ends it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        walls: Sequence[Wall],
        built: dict[str, str],
        home: Path,
        limits: Limits,
    ):
        self.process = process
        self.walls = tuple(walls)
        self.built = built
        self.home = home
        self.limits = limits
        self._late: float | None = None
        self._timer: threading.Timer | None = None
        if limits.seconds is not None:
            self._timer = threading.Timer(limits.seconds, self._expire, (limits.seconds,))
            self._timer.daemon = True
            self._timer.start()

    @property
    def isolated(self) -> bool:
        """Whether every essential wall stands."""
        return not missing(list(self.walls))

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def send(self, number: int) -> None:
        """Pass a signal on to it."""
        self.process.send_signal(number)

    def wait(self, timeout: float | None = None) -> Ending:
        """Wait for its end, kill it when `timeout` seconds are over, and remove its own folder."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._expire(timeout)
        return self.close()

    def close(self) -> Ending:
        """Kill it if it still runs, and remove its own folder."""
        if self._timer is not None:
            self._timer.cancel()
        self.process.kill()  # does nothing to one that has ended
        code = self.process.wait()
        remove_tree(self.home)
        return Ending(code, self._words(code))

    def _expire(self, seconds: float | None) -> None:
        if self.process.poll() is None:
            self._late = seconds
            self.process.kill()

    def _words(self, code: int) -> str:
        if self._late is not None:
            return f"did not end within {self._late:g} s"
        if code < 0:
            name = signal.Signals(-code).name
            hint = {"SIGKILL": " (was there too little memory?)", "SIGXCPU": " (its processor time was used up)"}
            return f"killed by {name}{hint.get(name, '')}"
        memory = self.limits.memory_bytes
        allowed = f" than the {memory / (1 << 30):.3g} GiB allowed" if memory else " than there is"
        known = {0: "", FAILED: "failed; its last output says why", NO_MEMORY: f"needed more memory{allowed}"}
        return known.get(code, f"ended with code {code}")

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_boxed(
    target: str,
    arguments: dict[str, Any],
    *,
    read: Sequence[Path] = (),
    write: Sequence[Path] = (),
    limits: Limits | None = None,
    stdout: Output = None,
    stderr: Output = None,
    own_session: bool = False,
    trusted: bool = False,
    threads: int | None = None,
    without: Sequence[str] = (),
) -> Box:
    """Call a function in a process with walls; returns when they stand and have been tried, before the call is over.

    Args:
        target: "package.module:function", imported inside. An int it returns is the exit code.
        arguments: its keyword arguments, as JSON has them. Results are files in `write`: read them with
            `utils.runtime.files.read_regular`, for whoever wrote them may be hostile.
        read: files and folders it may read, beside the interpreter, libraries and our own package.
        write: folders it may read and change. Under root they are given to the user the box runs as.
        limits: what it may take.
        stdout: where its output goes, as `subprocess.Popen` has it. On a terminal it may draw what it likes.
        stderr: the same for its errors.
        own_session: it outlives this process and its terminal. Otherwise it dies with the *thread* that called.
        trusted: run it even where an essential wall is missing: somebody consented to the sha256 of this very code.
        threads: how many threads torch may use.
        without: walls to leave out, for tests only.

    Raises:
        NotIsolated: an essential wall does not stand and `trusted` is False. Nothing of the target was imported.
        NotStarted: it broke before that.
        ValueError: `write` names a folder that it could not write to, or a path does not exist or is too wide.
    """
    limits = limits or Limits()
    paths = {"read": [Path(path).resolve() for path in read], "write": [Path(path).resolve() for path in write]}
    for path in (*paths["read"], *paths["write"]):
        if not path.exists():
            raise ValueError(f"{path} does not exist; make it before it is opened to a boxed process")
        if Path(tempfile.gettempdir()).resolve().is_relative_to(path):
            raise ValueError(
                f"{path} holds this machine's temporary files; open a folder of its own to a boxed process"
            )
    home = new_scratch("box")  # held by the process in it
    reader, writer = os.pipe()
    process = None
    try:
        with tempfile.TemporaryDirectory(prefix="tbt-canary-") as canary:
            _lay_out(Path(canary))
            plan = {
                "read": list(map(str, paths["read"])),
                "write": list(map(str, paths["write"])),
                "home": str(home),
                "parent": 0 if own_session else os.getpid(),
                "memory_bytes": limits.memory_bytes,
                "file_bytes": limits.file_bytes,
                "open_files": limits.open_files,
                "threads": limits.threads,
                "cpu_seconds": limits.cpu_seconds,
            }
            request = {
                "target": target, "arguments": arguments, "plan": plan, "parent": os.getpid(), "canary": canary,
                "report": writer, "trusted": trusted, "without": list(without),
            }  # fmt: skip
            text = json.dumps(request).encode()
            process = subprocess.Popen(
                # -P: nothing in the folder it starts in is imported
                [sys.executable, "-P", "-m", "utils.jobs.boxed"],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                cwd=home,
                env=_environment(home, threads),
                pass_fds=[writer],
                start_new_session=own_session,
            )
            os.close(writer)
            writer = -1
            report = _report(process, reader, text)
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        remove_tree(home)
        raise
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    walls = [Wall(**wall) for wall in report.get("walls", [])]
    box = Box(process, walls, report.get("built", {}), home, limits)
    if report.get("closed_out"):
        box.close()
        raise ValueError(f"a boxed process cannot write to {', '.join(report['closed_out'])}; see who owns it")
    if not box.isolated and not trusted:
        box.close()
        raise NotIsolated(walls)
    return box


def _lay_out(canary: Path) -> None:
    """Files that the box must not reach, for it to try."""
    canary.chmod(0o755)
    for name, mode in (("private", 0o600), ("victim", 0o600), ("open", 0o644)):
        (canary / name).write_text("canary")
        (canary / name).chmod(mode)


def _environment(home: Path, threads: int | None) -> dict[str, str]:
    """All that a boxed process finds in its environment: nothing of ours but where things are."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return environment | {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "MPLCONFIGDIR": str(home),
        "TBT_CACHE": str(cache_dir()),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        **({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
    }


def _report(process: subprocess.Popen[bytes], reader: int, request: bytes) -> dict[str, Any]:
    """Hand over the request and read what the walls came to: written before anything of the target is imported."""
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(request)
    except BrokenPipeError:
        pass  # it ended already: then there is no report either
    said = b""
    while select.select([reader], [], [], START)[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        said += part
    try:
        return dict(json.loads(said))
    except ValueError:
        process.kill()
        code = process.wait()
        raise NotStarted(f"the box did not come up within {START} s (code {code}); its output says why") from None
