"""A folder for all that a benchmark's processes write, and how they are called; knows nothing of what they measure."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that is gone at the end, also when SIGTERM brings it (as a SystemExit). Only for the main thread."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        # A process that was killed may have left one behind that writes for a moment longer.
        with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def call(
    words: Sequence[str], folder: Path, settings: Mapping[str, str], **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command whose temporary files lie in `folder`, with `settings` in its environment; killed when this ends.

    `more` goes to `subprocess.run`, which says what else is raised.
    """
    environment = {**os.environ, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(words, env=environment | settings, capture_output=True, text=True, check=False, **more)
