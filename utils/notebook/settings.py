"""The settings a notebook runs with: a preset and overrides, which the environment may replace for a machine."""

import os
import shlex

from utils.config.load import dump_config, load_config
from utils.config.schema import RunConfig


def choose(preset: str, *overrides: str) -> RunConfig:
    """The settings of `preset` with `key.path=value` overrides.

    $TBT_PRESET replaces the preset, and the words in $TBT_SET are further overrides: that is how a test or a
    scheduled run takes this notebook through other settings without editing it. Raises ConfigError.
    """
    more = shlex.split(os.environ.get("TBT_SET", ""))
    return load_config(os.environ.get("TBT_PRESET") or preset, overrides=[*overrides, *more])


class Settings:
    """Settings that draw themselves as YAML."""

    def __init__(self, config: RunConfig) -> None:
        self.text = dump_config(config)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from html import escape

        return f"<details><summary>every setting of this run</summary><pre>{escape(self.text)}</pre></details>"
