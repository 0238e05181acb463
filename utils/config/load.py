"""From presets, YAML files and dotted overrides to one checked RunConfig; all problems at once."""

import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from utils.config.schema import BUILT_IN, RunConfig, TrainConfig, field_table

PRESETS = Path(__file__).parent / "presets"
# A preset may have set these for its own model; who names one beside another's model expects what will not happen.
SWITCHES = {f"model.shape.{name}" for name in ("activation", "qk_norm", "value_residual", "zero_init")}


class ConfigError(ValueError):
    """Settings that cannot be used. The message lists every problem found."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{head} in the settings:", *(f"  - {p}" for p in problems)]))


def preset_names() -> list[str]:
    """The presets that ship, in alphabetical order."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str | None = None, file: str | Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """The settings of a run: defaults, then the preset, then the YAML file, then `key.path=value` words.

    Raises ConfigError with every problem at once: unknown keys with the nearest known one, values out of
    range with what is allowed, settings that do not fit together.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    named: set[str] = set()
    if preset is not None:
        if preset not in preset_names():
            raise ConfigError([_unknown("preset", preset, preset_names())])
        _merge(values, _read_yaml(PRESETS / f"{preset}.yaml"))
    if file is not None:
        _merge(values, _read_yaml(Path(file)))
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems.append(f"{word!r} is not a setting: write key.path=value, such as train.max_steps=300")
            continue
        _set(values, key, _value(key, text))
        named.add(key)
    _shorten_warmup(values, named)
    config = _check(values, problems)
    if config.model.kind not in BUILT_IN and (unread := sorted(named & SWITCHES)):
        why = f"is for gpt and llama, and a model from elsewhere (kind {config.model.kind}) keeps its own layers"
        raise ConfigError([f"{key} {why}: leave it out" for key in unread])
    if config.run_dir:
        return config
    return config.model_copy(update={"run_dir": f"runs/{preset or 'run'}-{config_hash(config)[:6]}"})


def _shorten_warmup(values: dict[str, Any], named: set[str]) -> None:
    """A warmup that nobody asked for by name, and that is longer than the run, becomes a tenth of the run."""
    train = values.get("train")
    if "train.warmup_steps" in named or not isinstance(train, dict):
        return
    steps, warmup = train.get("max_steps"), train.get("warmup_steps", TrainConfig().warmup_steps)
    if "train.max_steps" in named and type(steps) is int and type(warmup) is int and 0 < steps < warmup:
        train["warmup_steps"] = steps // 10


def parse_config(text: str) -> RunConfig:
    """The settings in a YAML text, such as the config.yaml of a run folder. Raises ConfigError."""
    return _check(_as_mapping(text, "the settings"), [])


def dump_config(config: RunConfig) -> str:
    """Every setting as YAML that `parse_config` and `tbt train --config` take back unchanged."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=False)


def config_hash(config: RunConfig) -> str:
    """sha256 of every setting but run_dir: equal for runs that would train alike."""
    settings = config.model_dump(exclude={"run_dir"})
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`key: old -> new` for each setting that differs, run_dir aside."""
    was, now = flatten(old.model_dump(exclude={"run_dir"})), flatten(new.model_dump(exclude={"run_dir"}))
    return [f"{key}: {was[key]!r} -> {now[key]!r}" for key in was if was[key] != now[key]]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + str(key): value}
    return flat


def _value(key: str, text: str) -> Any:
    """What a word means: YAML; but a text setting takes it as it is written, unless it is quoted."""
    is_text = any(row[:2] == (key, "str") for row in field_table())
    if not text or (is_text and text[0] not in "\"'"):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date or a number and is none
        return text


def _check(values: dict[str, Any], problems: list[str]) -> RunConfig:
    """The config, or a ConfigError with `problems` and everything the schema finds."""
    values, wrong = _text_keys(values), set[str]()
    for _ in ("each setting by itself", "the good ones together"):
        try:
            config = RunConfig.model_validate(values)
            break
        except ValidationError as error:
            for found in error.errors():
                if found["type"] == "disagreement":
                    known = found["ctx"]["problems"]
                    problems += [text for keys, text in known if not any(_below(k, w) for k in keys for w in wrong)]
                else:
                    key = ".".join(map(str, found["loc"]))
                    wrong.add(key)
                    problems += _in_words(key, found["type"], found["msg"], found["input"])
                    _remove(values, found["loc"])
            if not wrong:
                break
    if problems:
        raise ConfigError(problems)
    return config


def _in_words(key: str, kind: str, message: str, value: Any) -> list[str]:
    rows = {row[0]: row for row in field_table()}
    if kind == "extra_forbidden":
        unknown = (isinstance(value, dict) and flatten(value, f"{key}.")) or [key]
        return [_unknown("setting", name, list(rows)) for name in unknown]
    if kind in ("model_type", "model_attributes_type"):
        return [f"{key} is a group of settings, not one value (given: {value!r})"]
    words = message[0].lower() + message[1:]
    hint = f"  [{rows[key][3]}]" if key in rows else ""
    return [f"{key}={value!r}: {words}{hint}"]


def _unknown(what: str, given: str, known: list[str]) -> str:
    namesakes = [key for key in known if key.rpartition(".")[2] == given.rpartition(".")[2]]
    near = difflib.get_close_matches(given, namesakes or known, n=1, cutoff=0.0 if namesakes else 0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {given}: {hint}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return _as_mapping(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError([f"no file {path}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from None


def _as_mapping(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that cannot be
        raise ConfigError([f"{name} is not YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{name} must hold `key: value` lines, not a {type(values).__name__}"])
    return values


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        if not isinstance(values.get(group), dict):
            values[group] = {}
        values = values[group]
    values[name] = value


def _text_keys(values: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): _text_keys(value) if isinstance(value, dict) else value for key, value in values.items()}


def _below(key: str, group: str) -> bool:
    return f"{key}.".startswith(f"{group}.")


def _remove(values: dict[str, Any], path: tuple[int | str, ...]) -> None:
    for group in path[:-1]:
        values = values[str(group)]
    values.pop(str(path[-1]), None)
