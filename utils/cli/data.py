"""`tbt data`: look at the text a run would learn from."""

import typer

from utils.cli.options import ConfigFile, Json, Overrides, Preset, print_json, read_config

app = typer.Typer(help="Look at the data.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Look at the data."""


@app.command()
def inspect(overrides: Overrides = None, preset: Preset = None, config: ConfigFile = None, json: Json = False) -> None:
    """Sizes, vocabulary, entropy floor and one example of the data that `tbt train` would use."""
    from utils.data.inspect import inspect_data

    found = inspect_data(read_config(preset, config, overrides).data)
    if json:
        print_json(found.to_dict())
    else:
        print(found)
