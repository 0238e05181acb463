"""Run a notebook cell by cell in a terminal, showing what each cell shows; knows nothing of what it does."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter

UPDATE_EVERY = 5.0  # seconds between lines of a display that changes, such as a progress line
RUN_LINE = re.compile(r"^run: (.+)$", re.MULTILINE)  # how an output names the run folder it shows


class StreamingClient(NotebookClient):
    """Executes cells and prints their text as it comes."""

    def __init__(self, notebook: Any, **options: Any) -> None:
        super().__init__(notebook, **options)
        self.runs: list[str] = []
        self._shown = 0.0

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Called by nbclient for each message of the kernel."""
        content = msg["content"]
        if msg["msg_type"] == "stream":
            self._print(content["text"], end="")
        elif msg["msg_type"] in ("display_data", "execute_result"):
            self._print(content["data"].get("text/plain", ""), end="\n\n")
        elif msg["msg_type"] == "update_display_data" and time.monotonic() - self._shown >= UPDATE_EVERY:
            line = content["data"].get("text/plain", "")
            if not line.startswith("<"):  # an object without words for a terminal
                self._print(line)
            self._shown = time.monotonic()
        return super().process_message(msg, cell, cell_index)

    def _print(self, text: str, end: str = "\n") -> None:
        self.runs += RUN_LINE.findall(text)
        print(text, end=end, flush=True)


def run_notebook(path: Path, out: Path | None = None) -> int:
    """Execute `path` in its own folder; leaves the executed notebook and an HTML page of it in `out`.

    `out` defaults to the run folder that the notebook's outputs name, else runs/notebooks. The last line
    printed is `run: FOLDER` where there is one. Gives back 0; 1 when a cell failed; 128 + n when signal n
    interrupted it (the cell that runs gets the interrupt, so that training saves). Raises FileNotFoundError,
    ValueError.
    """
    notebook = _read(path)
    client = StreamingClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # or the kernel says how it is connected
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    code = 0
    with client.setup_kernel(), _interrupts(client) as received:
        try:
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type == "markdown":
                    print("".join(f"{line}\n" for line in cell.source.splitlines() if line.startswith("#")))
                client.execute_cell(cell, index)
                if received:  # between two cells a kernel does not hear it
                    break
        except (CellExecutionError, DeadKernelError) as error:
            if not received:
                print(f"error: a cell of {path} failed\n{error}", file=sys.stderr)
            code = 1
    if received:
        print("interrupted", file=sys.stderr)
        code = 128 + received[0]
    # The notebook names its run as seen from its own folder.
    run = Path(os.path.relpath(path.parent / client.runs[-1])) if client.runs else None
    _write(notebook, out or run or path.parent / "runs" / "notebooks", path.stem)
    if run:
        print(f"run: {run}")
    return code


def _read(path: Path) -> Any:
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except FileNotFoundError:
        raise FileNotFoundError(f"no notebook {path}") from None
    except Exception as error:  # nbformat raises a different kind for each way a file can be wrong
        raise ValueError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from None
    return notebook


def _write(notebook: Any, folder: Path, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{stem}.ipynb")
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (folder / f"{stem}.html").write_text(page, encoding="utf-8")
    print(f"page: {folder / f'{stem}.html'}")


@contextlib.contextmanager
def _interrupts(client: StreamingClient) -> Iterator[list[int]]:
    """Pass INT, TERM and HUP on to the kernel as its interrupt; gives a list of those received."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        os.kill(client.km.provisioner.pid, signal.SIGINT)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
