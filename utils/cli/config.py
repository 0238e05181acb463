"""`tbt config`: presets, settings, JSON Schema."""

import typer

from utils.cli.options import ConfigFile, Overrides, Preset, print_json, read_config

app = typer.Typer(help="Show presets, settings and their JSON Schema.", no_args_is_help=True)


@app.command()
def show(overrides: Overrides = None, preset: Preset = None, config: ConfigFile = None) -> None:
    """Every setting a run would have, as YAML that `tbt train --config` takes."""
    from utils.config.load import dump_config

    print(dump_config(read_config(preset, config, overrides)), end="")


@app.command()
def presets() -> None:
    """The presets that ship, each with its first line."""
    from utils.config.load import PRESETS, preset_names

    for name in preset_names():
        first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:14} {first.removeprefix('# ')}")


@app.command()
def fields() -> None:
    """Every setting: its key, type, default and meaning."""
    from utils.config.schema import field_table

    for key, kind, default, description in field_table():
        print(f"{key}  ({kind}, default {default!r})\n    {description}")


@app.command()
def schema() -> None:
    """The JSON Schema of the settings."""
    from utils.config.schema import RunConfig

    print_json(RunConfig.model_json_schema())
