"""`tbt tokenizer`: make the tokenizer that a run would learn with, and look at any."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utils.cli.options import ConfigFile, Json, Overrides, Preset, print_json

if TYPE_CHECKING:
    from utils.config.schema import DataConfig
    from utils.data.tokenizing.tokenizer import Tokenizer

app = typer.Typer(help="Train a tokenizer, and look at one.", no_args_is_help=True)

Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder to write tokenizer.json and tokenizer_config.json into.")
]
What = Annotated[
    str, typer.Argument(metavar="TOKENIZER", help="A run, a folder, a tokenizer.json, or owner/name of the Hub.")
]
Text = Annotated[Path | None, typer.Option("--text", help="File of text to try it on.")]
Revision = Annotated[str, typer.Option("--revision", help="Commit of a Hub repository; default: the newest.")]


@app.callback()
def group() -> None:
    """Train a tokenizer, and look at one."""


@app.command()
def train(
    out: Out, overrides: Overrides = None, preset: Preset = None, config: ConfigFile = None, json: Json = False
) -> None:
    """Make a tokenizer from the training text of these settings, as `tbt train` does, and keep it in a folder.

    tbt tokenizer train data.source=text data.path=book.txt data.tokenizer=bpe data.vocab_size=8192 --out my-tokenizer
    """
    from utils.cli.data import interruptible, settled
    from utils.cli.prepare_bar import prepare_bar
    from utils.data.reading.sources import prepare_source
    from utils.data.storing.token_store import open_store
    from utils.data.tokenizing.tokenizer import KINDS

    _check_out(out)
    with interruptible():
        ready = settled(preset, config, overrides)
        data = ready.config.data
        if data.tokenizer not in KINDS:
            raise ValueError(
                f"data.tokenizer={data.tokenizer} is made already: `tbt tokenizer inspect` shows it. To train one, "
                f"choose data.tokenizer={'|'.join(KINDS)}"
            )
        with prepare_bar() as progress:
            prepare_source(data, progress)
            store = open_store(data, ready.own_tokenizer, progress)
    out.mkdir(parents=True, exist_ok=True)
    store.tokenizer.save(out)
    told = {
        "folder": str(out),
        "kind": data.tokenizer,
        "vocab_size": store.tokenizer.vocab_size,
        "bytes_per_token": round(store.bytes_per_token(), 4),
        "fingerprint": store.tokenizer.fingerprint,
    }
    if json:
        print_json(told)
    else:
        print(f"tokenizer: {out}  ({data.tokenizer}, {told['vocab_size']:,} tokens)")
        print(f"{told['bytes_per_token']:.3f} bytes of the validation text per token")
        print(f"look at it: tbt tokenizer inspect {out} --text FILE")


@app.command()
def inspect(
    tokenizer: What,
    overrides: Overrides = None,
    text: Text = None,
    preset: Preset = None,
    config: ConfigFile = None,
    revision: Revision = "",
    json: Json = False,
) -> None:
    """Its size, special tokens, tokens used and unused on a text, a text with its cuts, and what does not come back.

    The text is --text FILE, or that of settings such as data.source=text data.path=book.txt; for a run, its own.

    tbt tokenizer inspect runs/quickstart-abc123        tbt tokenizer inspect openai-community/gpt2 --text book.txt
    """
    from utils.data.tokenizing.tokenizer_report import inspect_tokenizer

    if text is not None and (overrides or preset or config):
        raise ValueError("--text and settings both say which text to look at: leave one of them out")
    found = _find(tokenizer, revision)
    if text is not None:
        texts = iter((_read(text),))
    elif overrides or preset or config:
        texts = _texts(preset, config, overrides)
    else:
        texts = _of_run(Path(tokenizer))
    report = inspect_tokenizer(found, texts)
    if json:
        print_json(report.to_dict())
    else:
        print(report)


def _find(name: str, revision: str) -> "Tokenizer":
    """The tokenizer of a run, of a folder or of the Hub."""
    from utils.data.tokenizing.pretrained_tokenizer import load_pretrained
    from utils.runs.folder import RunFolder
    from utils.runs.model_folder import model_folder

    path = Path(name)
    if path.is_dir() and RunFolder(path).exists():
        name = str(model_folder(path))
    return load_pretrained(name, revision)


def _of_run(path: Path) -> Iterator[str]:
    """The text a run learned from, as far as it is still there; nothing for what is no run."""
    from utils.runs.folder import RunFolder

    run = RunFolder(path)
    if not path.is_dir() or not run.exists():
        return
    try:
        yield from _said(run.config().data)
    except (OSError, ValueError) as error:
        print(f"not tried on the run's own text: {error}", file=sys.stderr)


def _texts(preset: str | None, config: Path | None, overrides: list[str] | None) -> Iterator[str]:
    from utils.cli.options import read_config
    from utils.data.reading.sources import pin, prepare_source

    data, notes = pin(read_config(preset, config, overrides).data)
    for note in notes:
        print(note, file=sys.stderr)
    prepare_source(data)
    return _said(data)


def _said(data: "DataConfig") -> Iterator[str]:
    from utils.data.looking.quality import words_of
    from utils.data.reading.sources import read_documents

    return map(words_of, read_documents(data))


def _read(path: Path) -> str:
    """A file of text. Raises FileNotFoundError, or ValueError where it is not UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"--text {path}: no such file")
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends stay as they are
            return file.read()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start:,} is {error.object[error.start]:#04x}"
        raise ValueError(f"--text {path} is not UTF-8 text: {wrong}") from None


def _check_out(out: Path) -> None:
    """Raise ValueError if writing there would destroy something else than a tokenizer."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    if out.is_dir() and any(path.suffix == ".safetensors" for path in out.iterdir()):
        raise ValueError(f"--out {out} holds a model, whose weights know its own tokenizer: choose another folder")
