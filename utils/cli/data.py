"""`tbt data`: make the tokens that a run learns from, and look at them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utils.cli.options import ConfigFile, Json, Overrides, Preset, Revision, print_json, read_config

if TYPE_CHECKING:
    from utils.jobs.prepare import Prepared

app = typer.Typer(help="Prepare the data, and look at it.", no_args_is_help=True)

Quality = Annotated[bool, typer.Option("--quality/--no-quality", help="Whether to look through the text, too.")]
Save = Annotated[Path | None, typer.Option("--save", help="Also write all of it as one HTML page.")]
ForModel = Annotated[
    str, typer.Option("--model", "-m", help="Data as this model would get them: what `tbt train --model` takes.")
]
Against = Annotated[
    Path | None, typer.Option("--against", help="Text file or folder: how far is it from the training text?")
]


@app.callback()
def group() -> None:
    """Prepare the data, and look at it."""


@app.command()
def prepare(
    overrides: Overrides = None,
    preset: Preset = None,
    config: ConfigFile = None,
    model: ForModel = "",
    revision: Revision = "",
    json: Json = False,
) -> None:
    """Download, split and cut into tokens the text that `tbt train` would use; `tbt train` does it, too, if needed.

    Ctrl-C stops it (exit code 130), and the same command goes on where it was. Example:

    tbt data prepare data.source=text data.path=book.txt
    """
    from utils.cli.prepare_bar import prepare_bar
    from utils.data.looking.inspect import describe_store
    from utils.data.storing.token_store import open_store

    with interruptible():
        ready = settled(preset, config, overrides, model, revision)
        with prepare_bar() as progress:
            store = open_store(ready.config.data, ready.own_tokenizer, progress)
            seconds = progress.seconds
        found = describe_store(store, ready.config.data)
    size = sum(store.info["bytes"].values())
    if json:
        print_json({**found.to_dict(), "seconds": round(seconds, 3), "bytes": size})
    else:
        made = f"made in {seconds:.1f} s, {size / 1e6 / seconds:.1f} MB/s" if seconds else "it was there already"
        print(f"{found.table()}\n{made}")


@app.command()
def inspect(
    overrides: Overrides = None,
    preset: Preset = None,
    config: ConfigFile = None,
    model: ForModel = "",
    revision: Revision = "",
    quality: Quality = True,
    against: Against = None,
    save: Save = None,
    json: Json = False,
) -> None:
    """Sizes, vocabulary, entropy floor and one example of the data that `tbt train` would use, and its quality.

    A warning advises; nothing is changed. Example:

    tbt data inspect data.source=text data.path=book.txt --save book.html
    """
    from utils.cli.prepare_bar import prepare_bar
    from utils.data.looking.inspect import inspect_data
    from utils.data.looking.quality import LIMIT

    if save is not None and not os.access(save.parent, os.W_OK):
        raise ValueError(f"--save {save}: the folder {save.parent} is not there or cannot be written")
    with interruptible():
        ready = settled(preset, config, overrides, model, revision)
        with prepare_bar() as progress:
            found = inspect_data(ready.config.data, ready.own_tokenizer, quality, against, LIMIT, progress)
    if json:
        print_json(found.to_dict())
    else:
        print(found)
    if save is not None:
        found.save(save)
        print(f"page: {save}", file=sys.stderr)


def settled(
    preset: str | None, config: Path | None, overrides: list[str] | None, model: str = "", revision: str = ""
) -> "Prepared":
    """The settings with all that only the network and the model know, as `tbt train` settles them; says each change."""
    from utils.jobs.prepare import prepare as settle

    ready = settle(read_config(preset, config, overrides, model, revision))
    for note in ready.notes:
        print(note, file=sys.stderr)
    return ready


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the command with one line and exit code 130: what is done is kept."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
