"""Let a trained model write: in this process, or, if building it runs a stranger's model.py, in a boxed one."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.config.schema import BUILT_IN
from utils.jobs.describe import WORDS, last_words, plain, start_for
from utils.jobs.find_model import FoundModel
from utils.runs.model_folder import CONFIG_FILE, MOST, kind_of, model_folder
from utils.runtime.files import scratch_folder

LONGEST = 1 << 16  # bytes of one line: pieces of text are a few characters
MOST_TEXT = 64_000_000  # bytes of all lines
MOST_TOKENIZER = 64_000_000  # bytes
WEIGHTS_FILE = "model.safetensors"


def complete(
    path: Path, prompt: str, *, checkpoint: str = "best", trust_sha256: str = "", **sampling: Any
) -> Iterator[str]:
    """Stream the text that the model at `path` (a run, a checkpoint, a model folder) continues `prompt` with.

    `sampling` is what `utils.inference.complete.complete` takes. Raises FileNotFoundError where there is no model,
    ValueError for a wrong request or code that may not run here, RuntimeError where a boxed process ended early.
    """
    folder = model_folder(path, checkpoint)
    if kind_of(folder) in BUILT_IN:
        return map(plain, _here(folder, prompt, sampling))
    found = FoundModel(str(path), "folder", str(folder))
    return _boxed(found, {"path": str(folder.resolve()), "prompt": prompt, **sampling}, trust_sha256)


def _here(folder: Path, prompt: str, sampling: dict[str, Any]) -> Iterator[str]:
    """In this process, out of a folder that has no room for code.

    The run may have a stranger's code training in it right now: what was read as the settings a moment ago may be
    something else when it is read again, so what is built is what was copied.
    """
    from utils.inference.complete import complete as here

    with scratch_folder("model") as pinned:
        for name, most in ((CONFIG_FILE, MOST), ("tokenizer.json", MOST_TOKENIZER), ("tokenizer_config.json", MOST)):
            if name != "tokenizer_config.json" or (folder / name).exists():  # without it a tokenizer has no roles
                with (folder / name).open("rb") as file:
                    (pinned / name).write_bytes(file.read(most))
        (pinned / WEIGHTS_FILE).symlink_to((folder / WEIGHTS_FILE).resolve())
        try:
            return here(pinned, prompt, **sampling)
        except (ValueError, FileNotFoundError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(str(error).replace(str(pinned), str(folder))) from None


def _boxed(found: FoundModel, arguments: dict[str, Any], trust_sha256: str) -> Iterator[str]:
    with tempfile.TemporaryFile() as log:
        target = "utils.inference.worker:main"
        options = {"read": found.read, "stdout": subprocess.PIPE, "stderr": log}
        with start_for(found, trust_sha256, target, arguments, **options) as box:
            assert box.process.stdout is not None
            left = MOST_TEXT
            while line := box.process.stdout.readline(LONGEST):
                left -= len(line)
                row = _row(line)
                if "error" in row:
                    raise ValueError(plain(str(row["error"])[:WORDS]))
                if left < 0 or not isinstance(row.get("text"), str):
                    raise RuntimeError("the model's process wrote what is no text of a model, or too much of it")
                yield plain(row["text"])
            ending = box.wait()
        if ending.code:
            raise RuntimeError(f"the model's process {ending.words}: {last_words(log)}")


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
