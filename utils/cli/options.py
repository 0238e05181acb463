"""The options that several commands share, each written once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from utils.config.schema import RunConfig

Preset = Annotated[str | None, typer.Option("--preset", "-p", help="Settings to start from: `tbt config presets`.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings, over the preset.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value]...", help="Settings such as train.max_steps=300: `tbt config fields`.", show_default=False
    ),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A preset, run or folder; a gist, zip or owner/name of the Hub.")
]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="Train this model: a gist, folder, zip, owner/name of the Hub, or a run.")
]
Revision = Annotated[str, typer.Option("--revision", help="Commit of a gist or Hub repository; default: the newest.")]
Trust = Annotated[
    str, typer.Option("--trust-sha256", help="Consent to run the model.py of this sha256 even where walls are missing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]


def read_config(
    preset: str | None,
    file: Path | None,
    overrides: list[str] | None,
    model: str = "",
    revision: str = "",
    run_dir: Path | None = None,
) -> "RunConfig":
    """The settings those name; the preset is quickstart when neither preset nor file is given.

    A `model` is found, as `tbt validate` finds it, and becomes settings that `overrides` may still change; a run that
    trains it already has it, at the commit it began with.
    """
    from utils.config.load import load_config

    words = list(overrides or ())
    if model:
        from utils.jobs.find_model import find_model, settings_in

        known = settings_in(run_dir, model) if run_dir and not revision else []
        if not known:
            found = find_model(model, revision)
            if found.kind == "preset":
                preset = preset or found.name
            known = found.settings()
        words = [*known, *words]
    if preset is None and file is None:
        preset = "quickstart"
    return load_config(preset, file, words)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import json

    print(json.dumps(value, indent=2))
