"""What the README and docs/*.md name is there: settings, commands and their options, scripts, and where links lead."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from tests.conftest import ROOT
from utils.cli.main import app
from utils.config.load import ConfigError, load_config
from utils.config.schema import field_table

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = {row[0] for row in field_table()}
SETTING = re.compile(r"(?<![\w/.-])((?:model|data|train|checkpoint)\.[a-z_][a-z0-9_.]*)(?![\w(])(=[^\s`),;|]*)?")
FILE_ENDINGS = (
    "py",
    "md",
    "json",
    "jsonl",
    "safetensors",
    "yaml",
    "ipynb",
    "csv",
    "txt",
    "parquet",
    "zip",
    "gz",
    "zst",
)


def code(page: Path) -> list[str]:
    """Every line of code in a page: fenced, indented, or between backticks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    (?! )(.*)$", text, re.M)
    return [line.strip() for line in [*lines, *re.findall(r"`([^`\n]+)`", text)]]


def problems(word: str) -> list[str]:
    """What is wrong with a setting."""
    try:
        load_config("debug", overrides=[word])
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_named_is_one_and_takes_the_value(page: Path):
    for line in code(page):
        for key, value in SETTING.findall(line):
            if key.rpartition(".")[2] in FILE_ENDINGS:
                continue
            groups = {".".join(known.split(".")[:i]) for known in KEYS for i in (1, 2)}
            assert key.rstrip(".") in KEYS | groups, line
            if value[1:] and not value[1:].isupper() and "..." not in value and value[1] != "[" and key in KEYS:
                wrong = [text for text in problems(key + value.strip("\"'")) if ": input should" in text]
                assert not wrong, line  # to need another setting beside it is no mistake


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_its_options_are_there(page: Path):
    for line in code(page):
        if line.startswith("tbt "):
            known = typer.main.get_command(app)
            words = shlex.split(line.partition(" #")[0])[1:]
            while words and hasattr(known, "commands") and not words[0].startswith("-"):
                assert words[0] in known.commands, line
                known = known.commands[words.pop(0)]
            options = {name for parameter in known.params for name in parameter.opts} | {"--help", "-h"}
            assert {word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)} <= options, line
        elif line.startswith("python "):
            _, script, *more = line.split()
            script = ROOT / (more[0].replace(".", "/") + ".py" if script == "-m" else script)
            if script.with_suffix("").is_dir():
                script = script.with_suffix("") / "__main__.py"
            assert script.is_file(), line
            texts = "".join(path.read_text(encoding="utf-8") for path in script.parent.glob("*.py"))  # shared
            for option in re.findall(r" (--[a-z-]+)", line):
                assert f'"{option}"' in texts, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        led = (page.parent / path).resolve() if path else page
        assert led.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", led.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target
