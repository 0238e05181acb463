"""A run's text before its worker starts: settled against a Hub on loopback, and kept to when the run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config.schema import DataConfig
from utils.jobs.prepare_data import prepare_data
from utils.tests.data.dataset_server import DatasetHub, Handler

ROOT = Path(__file__).parents[3]
# The client reads HF_ENDPOINT once, so this is a process of its own: a line in, a line out.
SERVE = """
import json, sys
from pathlib import Path
from utils.config.schema import DataConfig
from utils.data.reading.sources import prepare_source
from utils.jobs.prepare_data import prepare_data

for line in sys.stdin:
    words, known, download = json.loads(line)
    try:
        found, notes = prepare_data(DataConfig(**words), None, known and DataConfig(**known))
        if download:
            prepare_source(found)
        answer = {"data": found.model_dump(), "notes": notes}
    except ValueError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""
TEXTS = {"default": {"train": ["one", "two"], "validation": ["three"], "test": ["four"]}}
OTHERS = {"other": {"train": ["five"], "dev": ["six"]}}


class WithModels(Handler):
    """A Hub whose models are kept as its datasets are."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self.path = self.path.replace("/api/models/", "/api/datasets/", 1)
        super().do_GET()


class Settler:
    """A process that settles what it is told to, without a network once its Hub has stopped."""

    def __init__(self, hub: DatasetHub, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=ROOT, env=hub.environment(home), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, words: dict, known: dict | None = None, download: bool = False) -> dict:
        self.process.stdin.write(json.dumps([words, known, download]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def settle(self, words: dict, known: dict | None = None, download: bool = False) -> dict:
        """The settings it comes to."""
        answer = self.ask(words, known, download)
        assert "data" in answer, answer
        return answer["data"]


@pytest.fixture
def hub():
    server = DatasetHub()
    server.RequestHandlerClass = WithModels
    with server:
        yield server


@pytest.fixture
def settler(hub: DatasetHub, tmp_path: Path):
    settler = Settler(hub, tmp_path)
    yield settler
    settler.process.stdin.close()
    settler.process.stdout.close()
    settler.process.wait(20)


def settled(own: Path | None = None, known: DataConfig | None = None, **words) -> tuple[DataConfig, tuple[str, ...]]:
    """The same in this process, for what is on no Hub."""
    return prepare_data(DataConfig(**words), own, known)


def test_a_dataset_and_a_tokenizer_are_pinned_and_each_change_is_said(hub: DatasetHub, settler: Settler):
    commit, tokenizer = hub.put_dataset("acme/texts", TEXTS), hub.put_files("acme/tok", {"tokenizer.json": b"{}"})
    answer = settler.ask({"source": "hub", "name": "acme/texts", "tokenizer": "acme/tok"})
    data = answer["data"]
    assert (data["revision"], data["config"]) == (commit, "default")
    assert (data["val_from"], data["test_from"]) == ("validation", "test")
    assert (data["tokenizer"], data["tokenizer_revision"]) == ("acme/tok", tokenizer)
    assert f"data.revision={commit}: the newest commit" in answer["notes"]
    assert "data.val_from=validation: the dataset's own" in answer["notes"]


@pytest.mark.parametrize("words", [{}, {"revision": "main", "tokenizer_revision": "main"}])
def test_a_run_goes_on_with_what_it_began_with(hub: DatasetHub, settler: Settler, words: dict):
    """Whatever main is now, with the same words, and at last without a network."""
    hub.put_dataset("acme/texts", TEXTS)
    hub.put_files("acme/tok", {"tokenizer.json": b"{}"})
    words = {"source": "hub", "name": "acme/texts", "tokenizer": "acme/tok", **words}
    first = settler.settle(words, download=True)
    hub.put_dataset("acme/texts", OTHERS)
    hub.put_files("acme/tok", {"tokenizer.json": b"{ }"})
    assert settler.settle(words, first) == first
    hub.stop()
    assert settler.settle(words, first, download=True) == first
    assert "cannot be reached" in settler.ask(words)["error"]


def test_what_is_said_now_goes_before_what_the_run_has(hub: DatasetHub, settler: Settler):
    older, newer = hub.put_dataset("acme/texts", TEXTS), hub.put_dataset("acme/texts", TEXTS)
    words = {"source": "hub", "name": "acme/texts"}
    known = settler.settle(words)
    assert known["revision"] == newer
    said = settler.settle({**words, "revision": older, "val_from": "test", "tokenizer": "byte"}, known)
    assert (said["revision"], said["val_from"], said["tokenizer"]) == (older, "test", "byte")


def test_another_dataset_is_not_asked_for_the_commit_of_the_first(hub: DatasetHub, settler: Settler):
    """The run then says that its settings are others, and not that there is no such commit."""
    hub.put_dataset("acme/texts", TEXTS)
    other = hub.put_dataset("acme/others", OTHERS)
    known = settler.settle({"source": "hub", "name": "acme/texts"})
    found = settler.settle({"source": "hub", "name": "acme/others"}, known)
    assert (found["name"], found["revision"], found["config"], found["val_from"]) == (
        "acme/others", other, "other", "dev",
    )  # fmt: skip
    assert settler.settle({"source": "text", "path": "book.txt"}, known)["val_from"] == ""


def test_a_dataset_that_has_moved_to_an_owner_is_found_offline(hub: DatasetHub, settler: Settler):
    hub.put_dataset("acme/texts", TEXTS)
    known = settler.settle({"source": "hub", "name": "acme/texts"}, download=True)
    hub.stop()
    assert settler.settle({"source": "hub", "name": "texts"}, known) == known
    assert "cannot be reached" in settler.ask({"source": "hub", "name": "moon/texts"}, known)["error"]


def test_each_part_of_a_mixture_is_pinned_and_kept(hub: DatasetHub, settler: Settler):
    hub.put_dataset("acme/texts", TEXTS)
    hub.put_dataset("acme/others", OTHERS)
    parts = [
        {"source": "hub", "name": "acme/texts", "weight": 2.0},
        {"source": "text", "path": "book.txt"},
        {"source": "hub", "name": "acme/others"},
    ]
    first = settler.settle({"mixture": parts}, download=False)
    assert [bool(part["revision"]) for part in first["mixture"]] == [True, False, True]
    assert (first["val_from"], first["test_from"]) == ("", "")
    newer = hub.put_dataset("acme/texts", OTHERS)
    assert settler.settle({"mixture": parts}, first) == first
    assert settler.settle({"mixture": parts[:1]}, first)["mixture"][0]["revision"] == newer  # another mixture


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "spiece.model"])
def test_a_models_own_tokenizer_is_the_automatic_one(tmp_path: Path, name: str):
    (tmp_path / name).write_text("{}")
    data, notes = settled(tmp_path)
    assert data.tokenizer == "model"
    assert notes == ("data.tokenizer=model: the one the model came with",)


def test_where_there_is_none_it_is_learned(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    for own in (None, tmp_path):
        data, notes = settled(own)
        assert (data.tokenizer, notes) == ("bpe", ())


def test_a_run_keeps_its_tokenizer(tmp_path: Path):
    """Also where another is the automatic one now, or where it was fitted to the model's table."""
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in ("bpe", "byte", "char"):
        assert settled(tmp_path, DataConfig(tokenizer=name))[0].tokenizer == name
    assert settled(None, DataConfig(tokenizer="bpe"), tokenizer="unigram")[0].tokenizer == "unigram"


def test_a_tokenizer_on_this_machine_has_no_commit(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "acme" / "tok"  # what is here goes before what is on the Hub
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    for name in ("acme/tok", str(folder), str(folder / "tokenizer.json")):
        data, notes = settled(tokenizer=name)
        assert (data.tokenizer, data.tokenizer_revision, notes) == (name, "", ())


def test_a_tokenizer_that_is_nothing_is_refused():
    with pytest.raises(ValueError, match=r"data.tokenizer=unigrm is neither one of .* Did you mean unigram\?"):
        settled(tokenizer="unigrm")
