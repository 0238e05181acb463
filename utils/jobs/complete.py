"""Let a trained model write: in this process, or, if building it runs a stranger's model.py, in a boxed one."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.jobs.box import NotIsolated, start_boxed
from utils.jobs.describe import consents, last_words, plain
from utils.jobs.find_model import FoundModel
from utils.runs.model_folder import model_folder

LONGEST = 1 << 16  # bytes of one line: pieces of text are a few characters


def complete(
    path: Path, prompt: str, *, checkpoint: str = "best", trust_sha256: str = "", **sampling: Any
) -> Iterator[str]:
    """Stream the text that the model at `path` (a run, a checkpoint, a model folder) continues `prompt` with.

    `sampling` is what `utils.inference.complete.complete` takes. Raises FileNotFoundError where there is no model,
    ValueError for a wrong request or code that may not run here, RuntimeError where a boxed process ended early.
    """
    folder = model_folder(path, checkpoint)
    found = FoundModel(str(path), "folder", str(folder))
    if found.code is None:
        from utils.inference.complete import complete as here

        return here(folder, prompt, **sampling)
    return _boxed(found, {"path": str(folder.resolve()), "prompt": prompt, **sampling}, trust_sha256)


def _boxed(found: FoundModel, arguments: dict[str, Any], trust_sha256: str) -> Iterator[str]:
    with tempfile.TemporaryFile() as log:
        try:
            box = start_boxed(
                "utils.inference.worker:main",
                arguments,
                read=found.read,
                stdout=subprocess.PIPE,
                stderr=log,
                trusted=consents(found, trust_sha256),
            )
        except NotIsolated as error:
            raise ValueError(f"{error} Here that is --trust-sha256 {found.sha256}") from None
        with box:
            assert box.process.stdout is not None
            while line := box.process.stdout.readline(LONGEST):
                row = json.loads(line)
                if "error" in row:
                    raise ValueError(plain(str(row["error"])))
                yield plain(str(row["text"]))
            ending = box.wait()
        if ending.code:
            raise RuntimeError(f"the model's process {ending.words}: {last_words(log)}")
