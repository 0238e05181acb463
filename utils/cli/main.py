"""`tbt`: the package from a terminal. One file per command; each imports what is heavy when it runs."""

import os
import sys

import typer

from utils.cli import (
    config,
    data,
    evaluate,
    find_rate,
    generate,
    layers,
    notebook,
    resume,
    runs,
    status,
    stop,
    summary,
    tokenizer,
    train,
    validate,
)

app = typer.Typer(
    help="Train, look at and use any transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train.train)
app.command()(resume.resume)
app.command()(stop.stop)
app.command()(generate.generate)
app.command()(evaluate.evaluate)
app.command()(find_rate.find_rate)
app.command()(layers.layers)
app.command()(status.status)
app.command()(runs.runs)
app.command()(summary.summary)
app.command()(validate.validate)
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(config.app, name="config")
app.add_typer(notebook.app, name="notebook")


def main() -> None:
    """Run one command. A user's mistake is a message and exit code 2, never a traceback (unless TBT_DEBUG=1)."""
    try:
        app(prog_name="tbt")
    except BrokenPipeError:  # `tbt ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        if os.environ.get("TBT_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError | FileNotFoundError | BlockingIOError) else 1)
