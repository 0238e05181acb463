"""Datasets of the Hub, through the real `datasets` client in real processes, from a server on loopback."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="needs datasets")

from utils.config.schema import DataConfig
from utils.data.reading.hub_client import datasets_library
from utils.data.reading.hub_source import hub_key
from utils.tests.data.dataset_client import Client
from utils.tests.data.dataset_server import DatasetHub, parquet


@pytest.fixture(scope="module")
def hub():
    with DatasetHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub: DatasetHub, home: Path):
    client = Client(hub.environment(home), home / "stderr")
    yield client
    client.stop()


@pytest.fixture(autouse=True)
def mended(hub: DatasetHub):
    yield
    hub.broken, hub.cut = 0, {}


def texts(read: dict) -> list[str]:
    return [document[0] for document in read["documents"]]


# --- pin, prepare, read ----------------------------------------------------------------------------------------------


def test_a_dataset_is_pinned_downloaded_and_read_in_order(hub: DatasetHub, client: Client):
    rows = [f"text {i}\r\n\0é🙂 " for i in range(2_500)]
    splits = {"train": rows, "validation": ["v"], "test": ["t"]}
    commit = hub.put_dataset("acme/Plain-Set", {"default": splits}, files=3)
    pinned = client.do("pin", name="acme/Plain-Set")
    assert pinned["mine"] == {"revision": commit, "config": "default"}
    assert pinned["whole"] == {"val_from": "validation", "test_from": "test"}
    assert f"data.revision={commit}: the newest commit" in pinned["notes"]
    assert "data.val_from=validation: the dataset's own" in pinned["notes"]
    settings = pinned["settings"]
    told = client.do("prepare", **settings)
    assert told[-1] == ["unpacking acme/Plain-Set", 0, 0]
    downloads = [done for doing, done, _ in told if doing == "downloading acme/Plain-Set"]
    total = sum(len(data) for name, data in hub.repos["acme/Plain-Set"][commit].items() if name.endswith(".parquet"))
    assert downloads == sorted(downloads)
    assert downloads[-1] == told[0][2] == total
    read = client.do("read", **settings)
    assert texts(read) == rows
    assert read["documents"][16][1] == "acme/Plain-Set train row 17"
    assert read["documents"][2_499][1] == "acme/Plain-Set train row 2500"
    assert texts(client.do("read", split="validation", **settings)) == ["v"]

    hub.seen.clear()  # all of it again, from the disk alone
    hub.put_dataset("acme/Plain-Set", {"default": {"train": ["newer"]}})
    assert client.do("pin", **settings)["settings"] == settings
    assert client.do("prepare", **settings) == []
    assert texts(client.do("read", **settings)) == rows
    assert not hub.seen
    assert client.do("pin", name="acme/Plain-Set")["mine"]["revision"] != commit


def test_a_branch_is_pinned_to_its_commit_and_one_configuration_is_found(hub: DatasetHub, client: Client):
    commit = hub.put_dataset("acme/one", {"raw-v1": {"train": ["a"], "dev": ["b"]}})
    pinned = client.do("pin", name="acme/one", revision="main", split="train")
    assert pinned["mine"] == {"revision": commit, "config": "raw-v1"}
    assert pinned["whole"] == {"val_from": "dev"}
    assert f"data.revision={commit}: the commit of main" in pinned["notes"]
    assert "data.config=raw-v1: its only configuration" in pinned["notes"]


def test_what_the_user_says_of_splits_is_kept_and_a_mixture_has_none(hub: DatasetHub, client: Client):
    hub.put_dataset("acme/splits", {"default": {"train": ["a"], "valid": ["b"], "test": ["c"], "extra": ["d"]}})
    said = client.do("pin", name="acme/splits", val_from="extra", test_fraction=0.1)
    assert said["whole"] == {}
    assert client.do("pin", name="acme/splits", split="test")["whole"] == {"val_from": "valid"}
    part = {"source": "hub", "name": "acme/splits"}
    answer = client.ask("pin", name="", mixture=[part])
    assert answer["result"]["whole"] == {}
    assert set(answer["result"]["mine"]) == {"revision", "config"}


def test_columns_of_pairs_classes_and_chats(hub: DatasetHub, client: Client):
    from datasets import ClassLabel, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = [{"text": "dull", "label": 0}, {"text": "fine", "label": 1}, {"text": "secret", "label": -1}]
    hub.put_dataset("acme/classes", {"default": {"train": rows}}, features=features)
    settings = client.do("pin", name="acme/classes", task="classification")["settings"]
    client.do("prepare", **settings)
    assert "acme/classes train row 3: column label" in client.error("read", **settings)
    read = client.do("read", **settings, on_bad_row="skip")
    assert [(text, label) for text, _, _, label, _ in read["documents"]] == [("dull", "bad"), ("fine", "good")]
    assert len(read["skipped"]) == 1

    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    hub.put_dataset("acme/chats", {"default": {"train": [{"id": 1, "messages": chat}] * 3}})
    settings = client.do("pin", name="acme/chats")["settings"]
    client.do("prepare", **settings)
    assert client.do("read", **settings)["documents"][2] == ["", "acme/chats train row 3", None, None, chat]

    hub.put_dataset("acme/pairs", {"default": {"train": [{"question": "q", "answer": "a", "n": 1}]}}, form="jsonl")
    settings = client.do("pin", name="acme/pairs")["settings"]
    client.do("prepare", **settings)
    assert client.do("read", **settings)["documents"] == [["q\n", "acme/pairs train row 1", "a", None, None]]
    assert "question (text), answer (text), n (number)" in client.error("read", **settings, text_field="body")


def test_a_null_is_named_or_left_out(hub: DatasetHub, client: Client):
    hub.put_dataset("acme/nulls", {"default": {"train": [*["ok"] * 1_200, {"text": None}, "end"]}})
    settings = client.do("pin", name="acme/nulls")["settings"]
    client.do("prepare", **settings)
    assert client.error("read", **settings).startswith("acme/nulls train row 1201: column text is null")
    read = client.do("read", **settings, on_bad_row="skip")
    assert len(read["documents"]) == 1_201
    assert read["documents"][-1][1] == "acme/nulls train row 1202"
    assert len(read["skipped"]) == 1


def test_real_text_comes_through_the_door_of_all_sources(hub: DatasetHub, client: Client):
    folder = Path(__file__).parents[4] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    train, val = ((folder / f"wikitext2-{name}.txt").read_text().split("\n \n") for name in ("test", "valid"))
    hub.put_dataset("acme/wiki", {"raw": {"train": train, "validation": val}}, files=2)
    read = client.do("documents", name="acme/wiki", max_documents=400)
    assert [text for text, side, _ in read["documents"] if side == ""] == train[:400]
    assert [text for text, side, _ in read["documents"] if side == "val"] == val[:400]
    assert read["documents"][0][2] == "acme/wiki validation row 1"
    assert read["key"] == client.do("documents", name="acme/wiki", max_documents=400)["key"]
    hub.put_dataset("acme/wiki", {"raw": {"train": train[1:], "validation": val}})
    assert read["key"] != client.do("documents", name="acme/wiki", max_documents=400)["key"]


# --- what can be wrong -----------------------------------------------------------------------------------------------


def test_a_dataset_that_is_not_there_private_or_gated(hub: DatasetHub, client: Client):
    message = client.error("pin", name="acme/nowhere")
    assert message.startswith("data.name=acme/nowhere: there is no such dataset, or it is private: look at http")
    assert "set HF_TOKEN" in message
    hub.put_dataset("acme/secret", {"default": {"train": ["s"]}})
    hub.put_dataset("acme/gated", {"default": {"train": ["g"]}})
    hub.private.add("acme/secret")
    hub.gated.add("acme/gated")
    hub.tokens.add("hf_good")
    assert "or it is private" in client.error("pin", name="acme/secret")
    assert "acme/gated is gated: accept its terms at" in client.error("pin", name="acme/gated")
    client.do("token", value="hf_wrong")
    assert "does not know this HF_TOKEN" in client.error("pin", name="acme/secret")
    client.do("token", value="hf_good")
    for name in ("acme/secret", "acme/gated"):
        settings = client.do("pin", name=name)["settings"]
        client.do("prepare", **settings)
        assert texts(client.do("read", **settings)) == [name.split("/")[1][0]]
    client.do("token", value="")


def test_configurations_splits_and_revisions_that_are_not_there(hub: DatasetHub, client: Client):
    hub.put_dataset("acme/two", {"small": {"train": ["a"]}, "large": {"train": ["a", "b"], "test": ["c"]}})
    several = client.error("pin", name="acme/two")
    assert several == "data.name=acme/two has several configurations: set data.config to one of small, large"
    assert "has no configuration larg: set data.config to one of small, large" in client.error(
        "pin", name="acme/two", config="larg")  # fmt: skip
    files = {"val_from": "README.md", "test_from": "utils/data"}
    assert client.do("pin", name="acme/two", config="large", **files)["whole"] == {}
    assert "data.val_from=no.txt: " in client.error("pin", name="acme/two", config="large", val_from="no.txt")
    assert client.error("pin", name="acme/two", config="large", split="trian") == (
        "data.split=trian: data.name=acme/two has no such split: it has train, test")  # fmt: skip
    assert "data.val_from=dev: " in client.error("pin", name="acme/two", config="large", val_from="dev")
    assert "acme/two has no revision v9" in client.error("pin", name="acme/two", config="large", revision="v9")
    hub.put_dataset("acme/chosen", {"small": {"train": ["a"]}, "large": {"train": ["b"]}}, default="large")
    assert client.do("pin", name="acme/chosen")["mine"]["config"] == "large"


def test_names_that_are_none_and_code_that_is_not_run(hub: DatasetHub, client: Client, monkeypatch):
    assert "is not the name of a dataset: write it as owner/name" in client.error("pin", name="https://x.y/a/b")
    assert "is also a folder here" in client.error("pin", name="utils/data")
    hub.put_files("acme/script", {"script.py": b"raise SystemExit('run!')", "README.md": b"# no\n"})
    assert "Python code of its own, which is never run" in client.error("pin", name="acme/script")
    hub.put_files("acme/nothing", {"README.md": b"# no\n"})
    assert "data.name=acme/nothing: datasets cannot read it" in client.error("pin", name="acme/nothing")
    hub.put_files("acme/damaged", {"train.parquet": parquet([{"text": "a"}])[:-20] + b"x" * 20})
    answer = client.ask("pin", name="acme/damaged")
    message = answer.get("error") or client.error("prepare", **answer["result"]["settings"])
    assert "data.name=acme/damaged: datasets cannot read it" in message


def test_a_hub_that_is_out_of_order(hub: DatasetHub, client: Client):
    hub.broken = 429
    assert "429, too many requests" in client.error("pin", name="acme/plain")
    hub.broken = 500
    assert "answers 500: try again later" in client.error("pin", name="acme/plain")


def test_without_a_network(hub: DatasetHub, home: Path, tmp_path: Path):
    with DatasetHub() as other:
        commit = other.put_dataset("acme/kept", {"default": {"train": ["kept"], "validation": ["v"]}})
        other.put_dataset("acme/absent", {"default": {"train": ["a"]}})
        client = Client(other.environment(tmp_path), tmp_path / "stderr")
        settings = client.do("pin", name="acme/kept")["settings"]
        client.do("prepare", **settings)
    offline = Client(other.environment(tmp_path, HF_HUB_OFFLINE="1"), tmp_path / "stderr2")
    for one, why in ((client, "no answer"), (offline, "HF_HUB_OFFLINE is set")):
        assert one.do("pin", **settings)["settings"] == settings
        assert one.do("pin", name="acme/kept", revision=commit)["settings"] == settings  # its one configuration
        assert one.do("prepare", **settings) == []
        assert texts(one.do("read", **settings)) == ["kept"]
        message = one.error("pin", name="acme/kept")
        assert f"cannot be reached ({why})" in message
        assert f"set data.revision={commit}; or connect" in message
        message = one.error("pin", name="acme/absent")
        assert "is not in the cache: connect to the network and try again" in message
        absent = {"name": "acme/kept", "revision": "0" * 40, "config": "default"}  # never another commit's rows
        assert "cannot be reached" in one.error("prepare", **absent)
        assert "is not in the cache: run `tbt data prepare`" in one.error("read", **absent)
        one.stop()


# --- downloads that break --------------------------------------------------------------------------------------------


def test_a_download_that_breaks_goes_on_where_it_was(hub: DatasetHub, client: Client):
    rows = [os.urandom(500).hex() for _ in range(400)]
    commit = hub.put_dataset("acme/breaks", {"default": {"train": rows}})
    name = "default/train-00000-of-00001.parquet"
    half = len(hub.repos["acme/breaks"][commit][name]) // 2
    settings = client.do("pin", name="acme/breaks")["settings"]
    client.do("steps", size=50_000)
    hub.cut[name] = [half] * 100
    message = client.error("prepare", **settings)
    assert f"the download of {name} broke off at" in message
    assert "do the same again, it goes on from there" in message
    at = int(message.split("broke off at ")[1].split(" of")[0].replace(",", ""))
    assert half - 50_000 <= at <= half
    hub.seen.clear()
    hub.cut[name] = [half] * 8  # once more, longer than the client itself tries
    client.do("prepare", **settings)
    ranges = [int(request.range.removeprefix("bytes=").split("-")[0]) for request in hub.asked(name)]
    assert min(ranges) == at
    assert ranges[:9] == [at] * 9
    assert texts(client.do("read", **settings)) == rows
    client.do("steps", size=16 << 20)


def test_a_download_that_is_killed_goes_on_and_damage_is_noticed(hub: DatasetHub, client: Client, home: Path):
    rows = [os.urandom(500).hex() for _ in range(400)]
    commit = hub.put_dataset("acme/killed", {"default": {"train": rows}})
    settings = client.do("pin", name="acme/killed")["settings"]
    name = "default/train-00000-of-00001.parquet"
    path = f"acme/killed/resolve/{commit}/{name}"
    other = Client(hub.environment(home), home / "stderr2")
    other.do("steps", size=20_000)
    other.process.stdin.write(json.dumps(["prepare", settings]) + "\n")
    other.process.stdin.flush()
    while len(hub.asked(path)) < 5:
        time.sleep(0.005)
    other.process.send_signal(signal.SIGKILL)
    other.process.wait()
    [part] = (home / "hf/hub/datasets--acme--killed/blobs").glob("*.part")
    arrived = part.stat().st_size
    assert arrived >= 60_000
    hub.seen.clear()
    with part.open("r+b") as file:
        file.write(b"XXXX")
    assert "arrived damaged" in client.error("prepare", **settings)
    assert hub.asked(path)[0].range.startswith(f"bytes={arrived}-")
    client.do("prepare", **settings)
    assert texts(client.do("read", **settings)) == rows
    assert len(hub.repos["acme/killed"][commit][name]) > arrived


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_takes_only_what_is_asked_for_always_the_same(hub: DatasetHub, client: Client, home: Path):
    rows = [f"row {i}" for i in range(2_000)]
    hub.put_dataset("acme/huge", {"default": {"train": rows, "validation": ["v"] * 20}}, files=20)
    want = {"name": "acme/huge", "streaming": True, "max_documents": 60, "shuffle_buffer": 30}
    settings = client.do("pin", **want)["settings"]
    assert settings["val_from"] == "validation"
    hub.seen.clear()
    told = client.do("prepare", **settings)
    assert all(doing == "taking documents of acme/huge" for doing, _, _ in told)
    asked = {request.path for request in hub.asked("default/train-")}
    assert 1 <= len(asked) <= 3, asked
    assert not hub.asked("default/validation-")
    taken = texts(client.do("read", **settings))
    assert len(set(taken)) == 60
    assert taken[:5] == ["row 425", "row 427", "row 420", "row 405", "row 408"]  # with any version of `datasets`
    assert taken != sorted(taken, key=rows.index)
    assert client.do("read", **settings)["documents"][4][1] == "acme/huge train row 5"

    spool = Path(client.do("spool", **settings))
    assert not list((home / "hf/datasets").glob("acme___huge/*/*/*/*.arrow"))
    before = spool.read_bytes()
    hub.seen.clear()
    client.do("prepare", **settings)
    assert client.do("pin", **settings)["settings"] == settings
    assert not hub.seen
    spool.unlink()
    assert "is not in the cache" in client.error("read", **settings)
    client.do("prepare", **settings)
    assert spool.read_bytes() == before
    assert list(spool.parent.glob("*.tmp-*")) == []
    other = settings | {"seed": 1}
    client.do("prepare", **other)
    assert texts(client.do("read", **other)) != taken
    client.do("prepare", split="validation", **settings)
    assert texts(client.do("read", split="validation", **settings)) == ["v"] * 20


def test_a_key_is_a_commits():
    with pytest.raises(ValueError, match=r"data.name=a/b is not pinned to a commit \(data.revision=main\)"):
        hub_key(DataConfig(source="hub", name="a/b", revision="main"))
    key = hub_key(DataConfig(source="hub", name="a/b", revision="0" * 40, config="c"))
    assert key == {"name": "a/b", "config": "c", "revision": "0" * 40, "streaming": False}


def test_the_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    with pytest.raises(ValueError, match="data.source=hub needs the datasets library: pip install datasets"):
        datasets_library()


def test_the_libraries_say_nothing_of_their_own(client: Client):
    """Runs last: whatever the tests above did, no bar and no warning reached the terminal."""
    until = time.monotonic() + 60
    while not client.errors.read_text() and time.monotonic() < until:  # it may have been started just now
        time.sleep(0.05)
    assert client.errors.read_text() == "ready"
