"""`tbt data` as people use it: what it prints, its exit codes, every command of docs/data.md."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from utils.cli.main import app
from utils.cli.prepare_bar import PlainLines, prepare_bar
from utils.tests.data.dataset_server import DatasetHub
from utils.tests.walls import needs_walls

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
HUB = "source=hub"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with all the files that docs/data.md names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    lines = [f"It was day {i}, and the cat sat on mat {i * 7} and thought of fish.\n" for i in range(400)]
    Path("book.txt").write_text("\n".join(lines), encoding="utf-8")
    Path("other.txt").write_text("\n".join(lines).upper(), encoding="utf-8")
    Path("texts").mkdir()
    for i in range(8):
        Path(f"texts/{i}.txt").write_text("".join(lines[i * 40 : i * 40 + 40]), encoding="utf-8")
    with Path("reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "review"], *enumerate(lines)])
    pairs = [json.dumps({"prompt": f"What is {i} plus {i}?", "completion": f"{2 * i}"}) for i in range(200)]
    Path("pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": lines}), "texts.parquet")
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", DOCS, re.S):
        Path(name).write_text(code, encoding="utf-8")
    return tmp_path


def run(*words: str):
    """`tbt WORDS` in this process."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


IMPATIENT = "from utils.cli import main, prepare_bar; prepare_bar.PATIENCE = 0.0; main.main()"


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    """`tbt WORDS` as a process of its own, which tells from the first moment how far the data are."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def commands() -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", DOCS, re.S | re.M)
    return [line for name, block in blocks if name in ("", "bash") for line in block.splitlines() if "tbt data" in line]


@pytest.mark.parametrize("command", [command for command in commands() if HUB not in command])
def test_every_command_of_the_page_works(folder, command: str):
    words = shlex.split(command)[1:]
    got = run(*words)
    assert got.exit_code == 0, got.output
    assert "fingerprint" in got.stdout
    assert ("Quality: " in got.stdout) == ("inspect" in words)
    if "--save" in words:
        assert "<!DOCTYPE html>" in Path(words[words.index("--save") + 1]).read_text(encoding="utf-8")


def test_the_page_shows_what_is_so():
    assert len(commands()) >= 9
    assert len(DOCS.splitlines()) <= 140
    records = re.findall(r"^\| `(\{.*?\})`", DOCS, re.M)
    assert len(records) == 5
    assert all(json.loads(record) for record in records)


def test_the_command_for_the_hub_works(folder):
    [command] = [command for command in commands() if HUB in command]
    texts = [f"Line {i} of a set of texts, which is long enough to learn from.\n" for i in range(300)]
    with DatasetHub() as hub:
        name = re.findall(r"data\.name=(\S+)", command)[0]
        config = re.findall(r"data\.config=(\S+)", command)[0]
        hub.put_dataset(name, {config: {"train": texts[:250], "validation": texts[250:]}})
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
        first = start(*shlex.split(command)[1:], "--json", **environment)
        out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    numbers = json.loads(out)
    assert (numbers["train_documents"], numbers["val_documents"]) == (250, 50)
    assert numbers["seconds"] > 0
    assert "data.revision" in err  # pinned, and said
    # The Hub is gone: the message names the commit that is there, and with it nothing is asked.
    again = start(*shlex.split(command)[1:], **environment)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 2
    pinned = re.findall(r"set (data\.revision=[0-9a-f]{40})", err)
    offline = start(*shlex.split(command)[1:], *pinned, "--json", **environment)
    out, err = offline.communicate(timeout=120)
    assert offline.returncode == 0, err
    assert json.loads(out)["fingerprint"] == numbers["fingerprint"]


def test_prepare_says_what_it_made(folder):
    words = ("data", "prepare", "data.source=text", "data.path=book.txt", "data.test_fraction=0.1")
    got = run(*words)
    assert got.exit_code == 0
    assert re.search(r"^made in [\d.]+ s, [\d.]+ MB/s$", got.stdout, re.M)
    for row in ("to train on", "to validate on", "to test on", "examples", "fingerprint", "kept in"):
        assert row in got.stdout
    assert run(*words).stdout.endswith("it was there already\n")
    numbers = json.loads(run(*words, "--json").stdout)
    assert numbers["seconds"] == 0
    assert numbers["bytes"] == sum(map(len, Path("book.txt").read_bytes().splitlines(keepends=True)))
    assert Path(numbers["store"]).is_dir()
    assert numbers["quality"] is None


def test_what_was_skipped_is_told(folder):
    with Path("pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n{broken\n")
    words = ("data", "prepare", "data.source=jsonl", "data.path=pairs.jsonl")
    with pytest.raises(ValueError, match=r"pairs\.jsonl line 201: not JSON"):
        run(*words)
    numbers = json.loads(run(*words, "data.on_bad_row=skip", "--json").stdout)
    assert len(numbers["warnings"]) == 1
    assert numbers["warnings"][0].startswith("left out: 1 row that could not be used; the first: pairs.jsonl line 201")
    assert "left out" in run(*words, "data.on_bad_row=skip").stdout


def test_inspect_without_quality_and_as_json(folder):
    words = ("data", "inspect", "data.source=text", "data.path=book.txt")
    full = json.loads(run(*words, "--json").stdout)
    assert {finding["name"] for finding in full["quality"]["findings"]} >= {"documents", "personal data", "encoding"}
    short = json.loads(run(*words, "--json", "--no-quality").stdout)
    assert short["quality"] is None
    assert short["drift"] == []
    against = json.loads(run(*words, "--json", "--no-quality", "--against", "other.txt").stdout)
    assert [report["worst"] for report in against["drift"]] == ["warning"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.source=text", "data.path=none.txt"), "data.path=none.txt: no such file or folder"),
        (("data.source=text", "data.path=book.txt", "--against", "none.txt"), "none.txt: no such file or folder"),
        (("--save", "nowhere/page.html"), "the folder nowhere is not there or cannot be written"),
        (("data.source=csv", "data.path=reviews.csv", "data.text_field=revue"), "did you mean review"),
    ],
)
def test_a_mistake_is_a_message(folder, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        run("data", "inspect", *words)


def test_a_mistake_exits_with_two_and_no_traceback(folder):
    process = start("data", "prepare", "data.source=text", "data.path=none.txt")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: data.path=none.txt: no such file or folder")
    assert "Traceback" not in err


def test_interrupted_it_goes_on(folder):
    draw = "".join(f"Number {i} of {i * 7919 % 1000003} is a line that nobody wrote before.\n" for i in range(80_000))
    Path("large.txt").write_text(draw, encoding="utf-8")
    words = ("data", "prepare", "data.source=text", "data.path=large.txt", "data.tokenizer=byte", "--json")
    process = start(*words)
    assert process.stderr is not None
    assert process.stderr.readline()  # it is at work
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "stopped; the same command goes on where it was"
    assert "Traceback" not in err
    assert out == ""
    again = start(*words)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert json.loads(out)["bytes"] == len(draw)


def test_what_is_quickly_done_needs_no_word(capsys):
    with prepare_bar() as progress:
        progress("reading", 0, 0)
        progress("encoding", 5000, 5000)
    assert capsys.readouterr().err == ""


def test_progress_in_a_pipe_is_a_few_lines(capsys, monkeypatch):
    monkeypatch.setattr("utils.cli.prepare_bar.PATIENCE", 0.0)
    with prepare_bar() as progress:
        for i in range(1000):
            progress("reading", i * 1000, 0)
        progress("encoding", 0, 5000)
        progress("encoding", 5000, 5000)
        assert progress.seconds > 0
    assert capsys.readouterr().err == "reading ...\nencoding ...\n"
    lines = PlainLines()
    lines("encoding", 2_500_000, 5_000_000)
    assert capsys.readouterr().err == "encoding: 2.5M of 5M (50 %)\n"


@needs_walls
def test_data_of_classes_are_looked_at_for_the_model_that_learns_them(folder):
    rows = [{"text": f"number {i}", "label": "odd" if i % 2 else "even"} for i in range(80)]
    Path("classes.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ("data.source=jsonl", "data.path=classes.jsonl", "data.task=classification", "data.val_fraction=0.2")
    got = run("data", "inspect", "--model", str(ROOT / "tests" / "exports" / "classifier"), *words)
    assert got.exit_code == 0, got.output
    assert re.search(r"classes +2: even, odd", got.stdout)
    assert "its class is" in got.stdout


def test_training_says_how_far_the_data_are(folder):
    words = ("data.source=text", "data.path=book.txt", "data.seq_len=32", "train.max_steps=1", "train.warmup_steps=0")
    child = start("train", "--preset", "debug", *words, "--run-dir", "run")
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    assert [line.split(":")[0].removesuffix(" ...") for line in said.splitlines()][:1] == ["reading"]
    assert "encoding: " in said
