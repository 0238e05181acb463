"""`tbt find-rate`: which learning rate suits a model, its data and its optimizer."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import ConfigFile, Json, ModelName, Overrides, Preset, Revision, Trust, print_json, read_config


def find_rate(
    overrides: Overrides = None,
    preset: Preset = None,
    config: ConfigFile = None,
    model: ModelName = "",
    revision: Revision = "",
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The run that is to train; nothing in it is changed.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="How many steps; the rate rises at each.")] = 100,
    low: Annotated[float, typer.Option("--from", help="Learning rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option("--to", help="Learning rate of the last step.")] = 1.0,
    trust_sha256: Trust = "",
    json: Json = False,
) -> None:
    """Suggest a learning rate, from a short training in which it rises until the loss breaks down.

    Takes the settings of `tbt train` and trains a new model on the same data in a folder that goes away. Example:

    tbt find-rate --preset quickstart train.optimizer=muon
    """
    from utils.cli.prepare_bar import prepare_bar
    from utils.jobs.find_rate import find_rate as ask
    from utils.training.rate_curve import rising_rates

    rising_rates(steps, low, high)  # a wrong range is said before anything is fetched
    settings = read_config(preset, config, overrides, model, revision, run_dir)
    if trust_sha256:
        trusting = settings.model.model_copy(update={"trust_sha256": trust_sha256})
        settings = settings.model_copy(update={"model": trusting})
    try:
        with prepare_bar() as progress:
            curve = ask(settings, steps, low, high, progress)
    except KeyboardInterrupt:
        print("stopped: nothing is left of it", file=sys.stderr)
        sys.exit(130)
    if json:
        print_json(curve.to_dict())
    else:
        print(curve)
