"""What a name for a model leads to: folders, zips, checkpoints, gists and a Hub that answers on loopback."""

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from utils.models.findings import ExportError
from utils.models.sources import SourceError, check_files, fetch_source
from utils.tests.models.github_server import CONFIG, FIRST, ID, MODEL, GitHub, sha
from utils.tests.models.hub_server import Hub

BOTH = {"model.py": MODEL, "config.json": CONFIG}
HASHES = {"model.py": sha(MODEL), "config.json": sha(CONFIG)}
LLAMA = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
CHECKPOINT = {"config.json": LLAMA, "model.safetensors": "weights", "tokenizer.json": "{}", "modeling_x.py": "evil",
              "pytorch_model.bin": "pickle", "README.md": "hello"}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def folder(path: Path, files: dict[str, str]) -> str:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return str(path)


def zipped(path: Path, files: dict[str, str | bytes], **kwargs) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **kwargs) as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            archive.writestr(info, text, zipfile.ZIP_DEFLATED)
    return str(path)


def run(*refs: str, before: str = "", **env: str) -> dict | list[dict]:
    """What a fresh process makes of names: huggingface_hub reads its settings when it is imported."""
    code = (
        f"import json, sys\n{before}\nfrom utils.models.sources import fetch_source\n"
        "for ref in sys.argv[1:]:\n    try:\n"
        "        source, torch = fetch_source(ref), 'torch' in sys.modules\n"
        "        print(json.dumps({**source.to_dict(), 'folder': str(source.folder), 'torch': torch}))\n"
        "    except ValueError as error:\n        print(json.dumps({'error': str(error)}))\n"
    )
    env = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "", **env}
    env["PYTHONPATH"] = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", code, *refs], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(refs)
    return results if len(refs) > 1 else results[0]


# --- folders and zips --------------------------------------------------------------------------------------------


def test_a_folder_is_copied_so_that_what_was_looked_at_is_what_runs(tmp_path, cache):
    ref = folder(tmp_path / "mine", {**BOTH, "data.bin": "not mine to copy"})
    source = fetch_source(ref)
    assert (source.kind, source.ref, source.revision, source.owner, source.sha256) == ("builder", ref, "", "", HASHES)
    (tmp_path / "mine" / "model.py").write_text("changed = 1\n")
    assert source.folder.is_relative_to(cache)
    assert (source.folder / "model.py").read_text() == MODEL
    assert sorted(path.name for path in source.folder.iterdir()) == ["config.json", "model.py"]
    other = fetch_source(ref)
    assert other.folder != source.folder
    (other.folder / "model.py").write_text("damaged")
    assert (fetch_source(ref).folder / "model.py").read_text() == "changed = 1\n"


def test_the_same_bytes_are_the_same_copy(tmp_path):
    sources = [
        fetch_source(folder(tmp_path / "one", BOTH)),
        fetch_source("one/"),
        fetch_source(zipped(tmp_path / "top.zip", {"export/": "", **{f"export/{name}": BOTH[name] for name in BOTH}})),
        fetch_source(
            zipped(tmp_path / "flat.zip", {**BOTH, "__MACOSX/._model.py": "junk", "extra/deep/notes.txt": "a"})
        ),
    ]
    assert len({source.folder for source in sources}) == 1
    assert [source.ref for source in sources][1] == "one/"
    assert all(source.sha256 == HASHES for source in sources)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "model.py: missing: .* there is nothing"),
        (
            {"config.json": CONFIG},
            "model.py: missing: a published model is model.py and config.json; there is config.json",
        ),
        (
            {"MODEL.PY": MODEL, "config.json": CONFIG},
            "there is MODEL.PY, which differs from model.py in upper and lower",
        ),
        ({"model.py": "x = (\n", "config.json": CONFIG}, r"model.py:1: not Python: .*\n    x = \("),
        ({"model.py": MODEL, "config.json": "{,}"}, "config.json:1: not JSON: .* line 1 column 2"),
    ],
)
def test_a_folder_and_a_zip_that_hold_no_model_say_the_same(tmp_path, files, said):
    for ref in (folder(tmp_path / "bad", files), zipped(tmp_path / "bad.zip", files)):
        with pytest.raises(ExportError, match=said):
            fetch_source(ref)
    with pytest.raises(ExportError, match=said):
        check_files(tmp_path / "bad")


def test_check_files_gives_the_config(tmp_path):
    assert check_files(Path(folder(tmp_path / "good", BOTH))) == {"vocab_size": 61}
    with pytest.raises(SourceError, match="nowhere cannot be read: No such file"):
        check_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({**BOTH, "../model.py": "evil"}, r"refused: \.\./model.py leads out of the zip"),
        ({**BOTH, "a/../../x": "evil"}, "leads out of the zip"),
        ({**BOTH, "/etc/x": "evil"}, "leads out of the zip"),
        ({**BOTH, "a\\model.py": "evil"}, "leads out of the zip"),
        ({**BOTH, "C:/x": "evil"}, "leads out of the zip"),
        ({**BOTH, "zeros": "0" * 1_000_000}, "zeros is packed more than 100:1"),
        ({**BOTH, **{f"f{i}": "" for i in range(1000)}}, "holds 1,002 files; a model's zip has at most 1,000"),
        ({f"{top}/{name}": BOTH[name] for top in "ab" for name in BOTH}, "ambiguous: 2 folders in it hold a model"),
        ({f"a/b/{name}": BOTH[name] for name in BOTH}, "model.py: missing"),
    ],
)
def test_a_zip_that_is_more_than_a_model_is_refused(tmp_path, cache, files, said):
    with pytest.raises(ValueError, match=said):
        fetch_source(zipped(tmp_path / "bad.zip", files))
    assert not cache.exists()


def test_zips_that_lie_or_are_no_zips(tmp_path):
    link = zipfile.ZipInfo("model.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("config.json", CONFIG)
    with pytest.raises(SourceError, match="model.py is a link or a device"):
        fetch_source("link.zip")

    whole = Path(zipped(tmp_path / "whole.zip", BOTH)).read_bytes()
    (tmp_path / "secret.zip").write_bytes(encrypted(whole))
    with pytest.raises(SourceError, match="model.py is encrypted"):
        fetch_source("secret.zip")
    cut = whole.index(b"model.py") + 12
    (tmp_path / "flipped.zip").write_bytes(whole[:cut] + bytes([whole[cut] ^ 255]) + whole[cut + 1 :])
    with pytest.raises(SourceError, match="damaged or unknown kind of zip"):
        fetch_source("flipped.zip")
    for name, data in (("short.zip", whole[:50]), ("empty.zip", b""), ("text.zip", b"hello"), ("model.py", b"x = 1")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            SourceError, match=f"{name} is no folder and no zip. Known are a folder or .zip with model.py"
        ):
            fetch_source(name)
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as archive:
        archive.writestr("weights", bytes(20_000_001))
    with pytest.raises(SourceError, match="big.zip has 20,000,... bytes"):
        fetch_source("big.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("model.py", "x = 1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("model.py", "x = 2")
    with pytest.raises(SourceError, match="it holds model.py twice"):
        fetch_source("twice.zip")


def encrypted(data: bytes) -> bytes:
    """The zip with its first file marked as encrypted, in the central directory too."""
    out = bytearray(data)
    out[data.index(b"PK\3\4") + 6] |= 1
    out[data.index(b"PK\1\2") + 8] |= 1
    return bytes(out)


# --- transformers folders ----------------------------------------------------------------------------------------


def test_a_checkpoint_is_used_where_it_lies(tmp_path, cache):
    source = fetch_source(folder(tmp_path / "tiny", CHECKPOINT))
    assert (source.kind, source.folder, source.code_sha256) == ("hub", tmp_path / "tiny", "")
    assert source.sha256 == {
        name: sha(CHECKPOINT[name]) for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert not cache.exists()


def test_weights_in_parts_are_all_there(tmp_path):
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    files = {"config.json": LLAMA, "model.safetensors.index.json": index, "model-00001-of-00002.safetensors": "1"}
    ref = folder(tmp_path / "parts", files)
    with pytest.raises(
        SourceError, match="parts lacks model-00002-of-00002.safetensors, which model.safetensors.index"
    ):
        fetch_source(ref)
    (tmp_path / "parts" / "model-00002-of-00002.safetensors").write_text("2")
    (tmp_path / "parts" / "consolidated.safetensors").write_text("the same again")
    assert set(fetch_source(ref).sha256) == {*files, "model-00002-of-00002.safetensors"}
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(SourceError, match="index.json is damaged"):
        fetch_source(ref)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"config.json": LLAMA, "pytorch_model.bin": "p"},
            "pytorch_model.bin only. Pickled weights .* safe_serialization",
        ),
        ({"config.json": "{}", "model.safetensors": "w"}, "names neither architectures nor model_type"),
        ({"model.safetensors": "w"}, "has weights but no config.json"),
        ({**CHECKPOINT, "model.py": MODEL}, "is ambiguous: it holds a model.py, and also a transformers config.json"),
    ],
)
def test_what_is_half_a_checkpoint_says_what_to_do(tmp_path, files, said):
    with pytest.raises(SourceError, match=said):
        fetch_source(folder(tmp_path / "half", files))


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", ["", "gpt2", "./nowhere", "a/b/c", "https://example.com/octocat/model", "x\0y",
                                 "~nobody/x", "hf://datasets/a/b", "model.zip"])  # fmt: skip
def test_an_unknown_name_says_which_kinds_there_are(ref):
    with pytest.raises(
        SourceError, match="Known are a folder or .zip with model.py and config.json, a transformers folder"
    ):
        fetch_source(ref)


def test_ambiguous_names(tmp_path):
    folder(tmp_path / ID, BOTH)
    with pytest.raises(SourceError, match=f"ambiguous: a folder here has the name of a gist. Write ./{ID} or https"):
        fetch_source(ID)
    assert fetch_source(f"./{ID}").sha256 == HASHES
    with pytest.raises(
        SourceError, match=f"ambiguous: write hf://octocat/{ID} .* https://gist.github.com/octocat/{ID}"
    ):
        fetch_source(f"octocat/{ID}")
    with pytest.raises(SourceError, match="is on this machine and has no revisions"):
        fetch_source(f"./{ID}", "main")
    with pytest.raises(SourceError, match="two revisions: a in octocat/m@a and b beside it"):
        fetch_source("octocat/m@a", "b")


def test_a_gist_is_fetched(monkeypatch):
    with GitHub() as github:
        github.put(BOTH)
        monkeypatch.setenv("GITHUB_API_URL", github.url)
        for ref in (ID, f"https://gist.github.com/octocat/{ID}/{FIRST}#file-model-py", f"{github.url}/gists/{ID}"):
            source = fetch_source(ref)
            assert (source.kind, source.ref, source.revision, source.sha256) == ("builder", ref, FIRST, HASHES)
    assert fetch_source(ID, FIRST).sha256 == HASHES


# --- the Hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server


def encoded(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files.items()}


def test_a_repository_is_pinned_and_only_what_is_used_is_downloaded(hub):
    commit = hub.put("acme/tiny", encoded({**CHECKPOINT, "onnx/model.safetensors": "elsewhere"}))
    source = run("acme/tiny")
    used = ["config.json", "model.safetensors", "tokenizer.json"]
    assert source["kind"], source
    assert (source["kind"], source["revision"], source["owner"], source["torch"]) == ("hub", commit, "acme", False)
    assert source["sha256"] == {name: sha(CHECKPOINT[name]) for name in used}
    assert sorted(path.name for path in Path(source["folder"]).iterdir()) == used

    newer = hub.put("acme/tiny", encoded({**CHECKPOINT, "model.safetensors": "trained further"}))
    latest, old = run("hf://acme/tiny@main", f"{hub.url}/acme/tiny/tree/{commit}")
    assert (latest["revision"], old["revision"]) == (newer, commit)
    hub.shutdown()
    hub.server_close()
    again = run(f"hf://acme/tiny@{commit}")
    assert again == {**source, "ref": f"hf://acme/tiny@{commit}"}


def test_damaged_weights_are_noticed(hub):
    hub.put("acme/tiny", encoded(CHECKPOINT))
    weights = Path(run("acme/tiny")["folder"], "model.safetensors").resolve()
    weights.write_text("wEights")
    assert "model.safetensors is damaged. Delete" in run("acme/tiny")["error"]


def test_a_repository_may_hold_a_published_model(hub, cache):
    commit = hub.put("acme/built", encoded({**BOTH, "README.md": "hello", "model.safetensors": "trained"}))
    source = run("acme/built")
    assert (source["kind"], source["revision"], source["sha256"]) == ("builder", commit, HASHES)
    assert Path(source["folder"]).is_relative_to(cache)
    assert not any("safetensors" in path for path in hub.seen)
    hub.broken = 500
    assert run(f"acme/built@{commit}") == {**source, "ref": f"acme/built@{commit}"}


def test_what_the_hub_refuses_is_said_in_words(hub):
    hub.put("acme/pickled", encoded({"config.json": LLAMA, "pytorch_model.bin": "p"}))
    hub.put("acme/text", encoded({"README.md": "hello"}))
    hub.put("acme/gated", encoded(CHECKPOINT))
    hub.gated = {"acme/gated"}
    words = {
        "acme/none": "acme/none: no such repository on the Hub, nor a folder here. If it is private, set HF_TOKEN",
        "acme/pickled": "Pickled weights can run code",
        "acme/pickled@v9": "at revision v9: there is no such revision",
        "acme/text": "model.py: missing",
        "acme/gated": "its owner asks for consent first",
        "acme/bad..name": "no name that a repository can have",
    }
    for said, result in zip(words.values(), run(*words, HF_TOKEN="hf_0123456789abcdefghijSECRET"), strict=True):
        assert said in result["error"]
        assert "SECRET" not in result["error"]
    hub.broken = 403
    assert "refused (403): is HF_TOKEN valid" in run("acme/text")["error"]


def test_a_hub_that_is_away_and_a_library_that_is_missing(hub):
    hub.shutdown()
    hub.server_close()
    for result in run("acme/tiny", f"acme/tiny@{'c' * 40}"):
        assert "the Hub cannot be reached" in result["error"]
        assert "is not here from before" in result["error"]
    missing = run("acme/tiny", before="sys.modules['huggingface_hub'] = None")
    assert "huggingface_hub is not installed: pip install huggingface_hub" in missing["error"]
