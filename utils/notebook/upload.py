"""Own files into a notebook: Colab's upload, or a button that saves files when they come; nothing waits for a click."""

import html
import sys
from pathlib import Path
from typing import Any

from utils.data.reading.collect import ENDINGS, safe_name, save_uploads, settings_of

ACCEPTED = f"{ENDINGS}, .gz, .zst, .zip"


class Upload:
    """A button to choose files with; then the settings that read them. Draws itself.

    `words` are those settings (`choose("quickstart", *upload.words)`), empty as long as there is no file. Widget
    events arrive between cells, so a cell below sees `words` once files have come.
    """

    def __init__(self, folder: str | Path = "data") -> None:
        self.folder = Path(folder).expanduser()
        self.words: list[str] = []
        self.problem = ""
        self.button: Any = None
        self.notice: Any = None

    def keep(self, files: list[tuple[str, bytes]]) -> list[str]:
        """Save (name, bytes) and find the settings that read them; a problem is shown instead of raised."""
        self.words, self.problem = [], ""
        try:
            self.words = settings_of(save_uploads(files, self.folder), self.folder)
        except (ValueError, OSError) as error:
            self.problem = str(error)
        if self.notice is not None:
            self.notice.value = self._page()
        return self.words

    def __repr__(self) -> str:
        if self.problem:
            return f"Not kept: {self.problem}"
        if self.words:
            chosen = ", ".join(map(repr, self.words))
            return f"Saved. To train on it: train(choose('quickstart', {chosen}))"
        return f"No file yet: choose some ({ACCEPTED}), or put them into {self.folder}/ and name that as data.path"

    def _page(self) -> str:
        colour = ";color:#dc2626" if self.problem else ""
        return f'<div style="font-size:13px;margin:4px 0{colour}">{html.escape(repr(self))}</div>'

    def _repr_mimebundle_(self, **_: Any) -> Any:
        """The button where there is one, else the words."""
        if self.button is None:
            return {"text/plain": repr(self), "text/html": self._page()}
        import ipywidgets

        self.notice = self.notice or ipywidgets.HTML(self._page())
        return _bundle(ipywidgets.VBox([self.button, self.notice])) | {"text/plain": repr(self)}


def upload(folder: str | Path = "data") -> Upload:
    """Take files from the user's own computer into `folder`.

    In Colab this opens its file chooser, and the cell waits for it as Colab's own does; elsewhere it is a button, and
    where there are no widgets, a sentence. Files get safe names; one of the same name is replaced; a zip is unpacked.
    """
    taken = Upload(folder)
    if "google.colab" in sys.modules:
        taken.keep(list(_colab_files(taken.folder).items()))
        return taken
    try:
        import ipywidgets
    except ImportError:
        return taken
    taken.button = ipywidgets.FileUpload(accept=ACCEPTED.replace(" ", ""), multiple=True, description="Choose files")

    def came(change: dict[str, Any]) -> None:
        if files := uploaded(change["new"]):
            taken.keep(files)

    taken.button.observe(came, names="value")
    return taken


def uploaded(value: Any) -> list[tuple[str, bytes]]:
    """(name, bytes) of the value of a FileUpload: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def _colab_files(folder: Path) -> dict[str, bytes]:
    """Colab's own upload: {name: bytes}. It also writes them into the working folder, from where they are removed."""
    from google.colab import files

    before = {path.name for path in Path().iterdir()}
    chosen: dict[str, bytes] = files.upload()
    for name in chosen:
        if name not in before and (Path().resolve() != folder.resolve() or safe_name(name) != name):
            Path(name).unlink(missing_ok=True)
    return chosen


def _bundle(widget: Any) -> dict[str, Any]:
    """What a notebook draws a widget from, in ipywidgets 7 and 8."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"application/vnd.jupyter.widget-view+json": view}
