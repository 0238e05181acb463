"""The settings a notebook runs with: a preset and overrides, which the environment may replace for a machine."""

import html
import os
import shlex

from utils.config.load import dump_config, load_config
from utils.config.schema import RunConfig
from utils.notebook.model import model_settings


def choose(preset: str, *overrides: str, model: str = "", revision: str = "", trust_sha256: str = "") -> RunConfig:
    """The settings of `preset` with `key.path=value` overrides, for the model called `model` if there is one.

    A model is named as in template.ipynb; empty means the one that template.ipynb beside this notebook looked at
    last, else the preset's own. $TBT_PRESET replaces the preset, and the words in $TBT_SET are further overrides: that
    is how a test or a scheduled run takes this notebook through other settings without editing it. Raises ConfigError.
    """
    named, words = model_settings(model, revision, trust_sha256)
    preset = os.environ.get("TBT_PRESET") or named or preset
    more = shlex.split(os.environ.get("TBT_SET", ""))
    return load_config(preset, overrides=[*words, *overrides, *more])


class Settings:
    """Settings that draw themselves: a few words, and all of them as YAML when unfolded."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"{self.config.model.kind} on {self.config.data.path or self.config.data.source}: {self.config.run_dir}"

    def _repr_html_(self) -> str:
        text = html.escape(dump_config(self.config))
        return f"<details><summary>{html.escape(repr(self))} (every setting)</summary><pre>{text}</pre></details>"
