"""Gists, fetched from a real server: every form of a name, every way to fail, and nothing but whole copies kept."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.models import gist
from utils.models.findings import ExportError
from utils.models.gist import fetch_gist, is_gist, parse_gist
from utils.models.source import SourceError
from utils.tests.models.github_server import (
    CONFIG,
    FIRST,
    ID,
    MODEL,
    SECOND,
    GitHub,
    answer,
    half,
    page,
    redirect,
    reset,
    sha,
    slow,
    status,
)

OLD = "6cad326836d38bd3a7ae"
TOKEN = "ghp_0123456789abcdefSECRET"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """GitHub, with one gist of two revisions; the second is the newest."""
    with GitHub() as github:
        github.put({"model.py": "x = 1\n", "config.json": "{}"}, FIRST)
        github.put({"model.py": MODEL, "config.json": CONFIG, "notes.md": "hello"}, SECOND)
        monkeypatch.setenv("GITHUB_API_URL", github.url)
        monkeypatch.setenv("TBT_CACHE", str(tmp_path))
        monkeypatch.delenv("GITHUB_TOKEN", raising=False)
        monkeypatch.setattr(gist, "BACKOFF", 0.01)
        yield github


def closed() -> str:
    """A loopback address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ID, (ID, "")),
        (f" {ID.upper()}\n", (ID, "")),
        (OLD, (OLD, "")),
        (f"https://gist.github.com/octocat/{ID}", (ID, "")),
        (f"http://gist.github.com/{ID}/", (ID, "")),
        (f"gist.github.com/octocat/{ID}", (ID, "")),
        (f"https://gist.github.com/octocat/{ID}/{FIRST}", (ID, FIRST)),
        (f"https://gist.github.com/octocat/{ID}/{FIRST}?x=1#file-model-py", (ID, FIRST)),
        (f"https://gist.github.com/octocat/{ID}#file-model-py", (ID, "")),
        (f"https://gist.github.com/octocat/{ID}?permalink_comment_id=5", (ID, "")),
        (f"https://gist.github.com/octocat/{ID}/revisions", (ID, "")),
        (f"https://gist.github.com/{OLD}/{ID}", (ID, "")),  # an owner whose name looks like an id
        (f"https://gist.github.com/{ID}.git", (ID, "")),
        (f"https://gist.github.com/octocat/{ID}.js", (ID, "")),
        (f"git@gist.github.com:{ID}.git", (ID, "")),
        (f"https://gist.githubusercontent.com/octocat/{ID}/raw/{FIRST}/model.py", (ID, "")),
        (f"https://gist.githubusercontent.com/octocat/{ID}/raw/model.py", (ID, "")),
        (f"https://api.github.com/gists/{ID}", (ID, "")),
        (f"https://api.github.com/gists/{ID}/{FIRST}", (ID, FIRST)),
    ],
)
def test_a_gist_is_known_by_any_of_its_names(text, expected):
    assert is_gist(text)
    assert parse_gist(text) == expected
    assert parse_gist(text, expected[1] or SECOND) == (expected[0], expected[1] or SECOND)


@pytest.mark.parametrize(
    "text",
    ["", "hello", ID[:-1], ID + "0", f"{ID}/{FIRST}", "https://gist.github.com/", "https://gist.github.com/octocat",
     f"https://evil.example/octocat/{ID}", f"https://gist.github.com.evil.example/{ID}", "https://[oops",
     f"ftp://gist.github.com/{ID}", "https://api.github.com/users/octocat", "https://api.github.com/gists/"],
)  # fmt: skip
def test_what_is_no_gist_is_refused_with_the_forms_allowed(text):
    with pytest.raises(ValueError, match="is no gist: give an id of 20 or 32 hexadecimal digits, or its URL"):
        parse_gist(text)


def test_a_revision_is_whole_and_one():
    with pytest.raises(ValueError, match="abc123 is no revision of a gist: that is 40 hexadecimal digits"):
        parse_gist(ID, "abc123")
    with pytest.raises(ValueError, match="abc123 is no revision"):
        parse_gist(f"https://gist.github.com/octocat/{ID}/abc123")
    with pytest.raises(ValueError, match="two revisions"):
        parse_gist(f"https://gist.github.com/octocat/{ID}/{FIRST}", SECOND)


def test_a_password_pasted_with_a_name_is_not_shown():
    with pytest.raises(ValueError, match="is no gist") as caught:
        parse_gist(f"https://me:hunter2@example.com/{TOKEN}")
    assert "hunter2" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_the_latest_revision_is_kept_byte_for_byte(server, tmp_path):
    source = fetch_gist(f"https://gist.github.com/octocat/{ID}")
    assert (source.kind, source.revision, source.owner) == ("builder", SECOND, "octocat")
    assert source.folder == tmp_path / "models" / f"gist-{ID}-{SECOND[:12]}"
    assert {path.name for path in source.folder.iterdir()} == {"model.py", "config.json"}
    assert (source.folder / "model.py").read_text() == MODEL
    assert source.sha256 == {"model.py": sha(MODEL), "config.json": sha(CONFIG)}
    assert source.code_sha256 == sha(MODEL)
    assert {path.name for path in source.folder.parent.iterdir()} == {source.folder.name, f"{source.folder.name}.json"}


def test_a_pinned_revision_needs_the_server_once(server, monkeypatch):
    before = fetch_gist(ID, FIRST)
    assert (before.folder / "model.py").read_text() == "x = 1\n"
    monkeypatch.setenv("GITHUB_API_URL", closed())
    assert fetch_gist(ID, FIRST) == before
    assert [path for path, _ in server.seen] == [f"/gists/{ID}/{FIRST}"]
    with pytest.raises(SourceError, match=f"no connection to 127.0.0.1.*Here from before: revision {FIRST}"):
        fetch_gist(ID)


@pytest.mark.parametrize("name", ["model.py", "config.json", "", "missing", "sidecar"])
def test_a_damaged_copy_is_fetched_again(server, name):
    source = fetch_gist(ID, SECOND)
    sidecar = source.folder.with_name(f"{source.folder.name}.json")
    if name == "missing":
        (source.folder / "model.py").unlink()
    elif name == "sidecar":
        sidecar.write_text(sidecar.read_text().replace(sha(MODEL), sha("other")))
    elif name:
        (source.folder / name).write_text("{} ")
    else:
        (source.folder / "model.py").unlink()
        (source.folder / "config.json").unlink()
        source.folder.rmdir()
        source.folder.write_text("a file in its place")
    assert fetch_gist(ID, SECOND) == source
    assert (source.folder / "model.py").read_text() == MODEL
    assert json.loads(sidecar.read_text())["sha256"] == source.sha256
    assert len(server.seen) == 2


def test_a_cache_that_cannot_be_written_is_named(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match="the cache .*/file cannot be written: Not a directory.*set TBT_CACHE"):
        fetch_gist(ID)


def test_compiled_code_left_in_the_copy_is_thrown_out(server, monkeypatch):
    source = fetch_gist(ID, SECOND)
    (source.folder / "__pycache__").mkdir()
    (source.folder / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"evil")
    (source.folder / "torch.py").write_text("evil")
    monkeypatch.setenv("GITHUB_API_URL", closed())
    assert {path.name for path in fetch_gist(ID, SECOND).folder.iterdir()} == {"model.py", "config.json"}


def test_processes_that_fetch_at_once_get_the_same_copy(server, tmp_path):
    code = f"from utils.models.gist import fetch_gist; print(fetch_gist({ID!r}, {SECOND!r}).code_sha256)"
    for _ in range(2):
        every = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate()[0].strip() for process in every] == [sha(MODEL)] * 3
        (tmp_path / "models" / f"gist-{ID}-{SECOND[:12]}" / "model.py").write_text("damaged")
    assert {path.name for path in (tmp_path / "models").iterdir()} == {
        f"gist-{ID}-{SECOND[:12]}", f"gist-{ID}-{SECOND[:12]}.json",
    }  # fmt: skip


@pytest.mark.parametrize("faults", [[status(500), status(503, Retry_After="3600")], [reset], [half, half], [slow(0.6)]])
def test_passing_faults_are_outlived(server, monkeypatch, faults):
    monkeypatch.setattr(gist, "TIMEOUT", (1.0, 0.3))
    server.faults = list(faults)
    assert fetch_gist(ID).revision == SECOND
    assert len(server.seen) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(502), "GitHub answered 502 4 times: a fault on its side. Try again later"),
        (half, "broke off in the middle of its answer|no connection to 127.0.0.1"),
        (reset, r"no connection to 127.0.0.1 \(4 tries\). Is there a network"),
        (slow(0.5), r"127.0.0.1 did not answer in time \(4 tries\)"),
    ],
)
def test_lasting_faults_end_after_four_tries(server, monkeypatch, fault, said):
    monkeypatch.setattr(gist, "TIMEOUT", (1.0, 0.1))
    server.faults = [fault] * 9
    with pytest.raises(SourceError, match=said):
        fetch_gist(ID)
    assert len(server.seen) == 4


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(gist, "BACKOFF", 0.01)
    monkeypatch.setenv("GITHUB_API_URL", closed())
    with pytest.raises(SourceError, match="Is there a network"):
        fetch_gist(ID, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(404), "gist 6cad.*: not found .404.: deleted, private, or a slip in the id"),
        (status(403), "GitHub refused it .403."),
        (status(418), "GitHub refused it .418."),
        (page, "answered with text/html instead of JSON: is there a proxy or a login page"),
        (answer([1]), "JSON that is no gist. Is GITHUB_API_URL right"),
        (answer({"files": {}}), "JSON that is no gist"),
        (answer({"files": {"model.py": 3}, "history": [{"version": FIRST}]}), "JSON that is no gist"),
        (answer({"files": {}, "history": [{"version": "../../x"}]}), "JSON that is no gist"),
        (redirect("https://evil.example/gists"), "leads to https://evil.example, which is not asked"),
    ],
)
def test_each_refusal_has_its_own_words(server, fault, said):
    server.faults = [fault]
    with pytest.raises(SourceError, match=said):
        fetch_gist(ID)
    assert len(server.seen) == 1


def test_an_unknown_gist_or_revision(server):
    with pytest.raises(SourceError, match="not found .404."):
        fetch_gist(OLD)
    with pytest.raises(SourceError, match=f"at revision {'c' * 40}: not found .404.*id or the revision"):
        fetch_gist(ID, "c" * 40)


def test_a_rate_limit_says_when_it_ends(server, monkeypatch):
    reset_at = int(time.time()) + 1800
    clock = time.strftime("%H:%M", time.localtime(reset_at))
    for fault in (
        status(403, X_RateLimit_Remaining="0", X_RateLimit_Reset=str(reset_at)),
        status(429, Retry_After="1800"),
        status(403, Retry_After="1800"),
    ):
        server.faults = [fault]
        with pytest.raises(
            SourceError, match=r"rate limit is used up .* until \d\d:\d\d:\d\d .in 30 min.*GITHUB_TOKEN, wh"
        ):
            fetch_gist(ID)
    server.faults = [status(403, X_RateLimit_Remaining="0", X_RateLimit_Reset=str(reset_at))]
    with pytest.raises(SourceError, match=f"until {clock}"):
        fetch_gist(ID)
    server.faults = [status(429, Retry_After="soon")]
    with pytest.raises(SourceError, match=r"used up .429.\. Wait"):
        fetch_gist(ID)
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    server.faults = [status(429, Retry_After="60")]
    with pytest.raises(SourceError, match="Wait until then"):
        fetch_gist(ID)


def test_the_token_goes_to_the_api_and_nowhere_else(server, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", f"{TOKEN}\n")
    with GitHub() as other:
        other.gists = server.gists
        server.raw_root, server.truncated = other.url, {"model.py"}
        assert (fetch_gist(ID).folder / "model.py").read_text() == MODEL
        assert server.seen == [(f"/gists/{ID}", f"Bearer {TOKEN}")]
        assert other.seen == [(f"/raw/{ID}/{SECOND}/model.py", None)]
        server.faults = [redirect(f"{other.url}/gists/{ID}")]
        assert fetch_gist(ID).revision == SECOND
        assert other.seen[-1] == (f"/gists/{ID}", None)
        server.faults = [redirect(f"/gists/{ID}")]
        fetch_gist(ID)
        assert server.seen[-1] == (f"/gists/{ID}", f"Bearer {TOKEN}")


def test_netrc_is_left_alone(server, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch_gist(ID)
    assert server.seen == [(f"/gists/{ID}", None)]


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500])
def test_no_message_holds_the_token(server, monkeypatch, code):
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    server.faults = [status(code)] * 4
    with pytest.raises(SourceError, match="GITHUB_TOKEN is not valid .401." if code == 401 else str(code)) as caught:
        fetch_gist(ID)
    assert TOKEN not in f"{caught.value}{caught.value.__cause__}"


def test_odd_settings_are_refused(server, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_a\nb")
    with pytest.raises(SourceError, match="GITHUB_TOKEN holds a character that no token has") as caught:
        fetch_gist(ID)
    assert "ghp_a" not in str(caught.value)
    monkeypatch.delenv("GITHUB_TOKEN")
    for root in ("http://example.com", "ftp://example.com", "nonsense", "https://me:hunter2@example.com"):
        monkeypatch.setenv("GITHUB_API_URL", root)
        with pytest.raises(SourceError, match="is no root of an API") as caught:
            fetch_gist(ID)
        assert "hunter2" not in str(caught.value)


def test_long_files_come_from_their_raw_address(server):
    server.truncated = {"model.py", "config.json"}
    source = fetch_gist(ID)
    assert source.sha256 == {"model.py": sha(MODEL), "config.json": sha(CONFIG)}
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    "root", ["https://evil.example", "http://gist.githubusercontent.com", "file:///etc", "nowhere"]
)
def test_a_raw_address_elsewhere_is_not_asked(server, root):
    server.truncated, server.raw_root = {"model.py"}, root
    with pytest.raises(
        SourceError, match="which is not asked: files come from 127.0.0.1 and gist.githubusercontent.com"
    ):
        fetch_gist(ID)


def test_sizes_are_checked(server):
    server.sizes = {"model.py": 9}
    with pytest.raises(SourceError, match="model.py in gist .* arrived with 5. bytes instead of 9"):
        fetch_gist(ID)
    server.sizes = {"config.json": 5_000_001}
    with pytest.raises(SourceError, match="config.json in gist .* has 5,000,001 bytes; at most 5,000,000 are read"):
        fetch_gist(ID)
    server.sizes, server.truncated = {"model.py": 9}, {"model.py"}
    server.put({"model.py": b"#" * 5_000_001, "config.json": CONFIG}, "c" * 40)
    with pytest.raises(SourceError, match="more than 5,000,000 bytes"):
        fetch_gist(ID)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": CONFIG, "net.py": "x"}, "model.py: missing: .* there is config.json, net.py"),
        ({"model.py": MODEL}, "config.json: missing: .* there is model.py"),
        (
            {"Model.py": MODEL, "config.json": CONFIG},
            "there is Model.py, which differs from model.py in upper and lower",
        ),
        ({"model.py": MODEL, "CONFIG.json": CONFIG}, "there is CONFIG.json, which differs from config.json"),
        ({"model.py": " \n", "config.json": CONFIG}, "model.py: empty"),
        ({"model.py": MODEL, "config.json": ""}, "config.json: empty"),
        (
            {"model.py": MODEL, "config.json": '{"a": 1,\n "b" 2}'},
            r'config.json:2: not JSON: .*line 2 column 6\n     "b" 2}\n',
        ),
        ({"model.py": MODEL, "config.json": "[1]"}, "config.json: holds a list, but has to be a JSON object"),
        ({"model.py": MODEL, "config.json": "[" * 99_999}, "config.json: JSON that cannot be read"),
        ({"model.py": "x = 1\nif x\n", "config.json": CONFIG}, r"model.py:2: not Python: .*\n    if x\n        \^"),
        ({"model.py": "a" + "(" * 9999, "config.json": CONFIG}, "model.py.*: not Python"),
        ({"model.py": b"# caf\xe9\n", "config.json": CONFIG}, "model.py:1: not UTF-8 text: byte 0xe9 at offset 5"),
        ({"model.py": "x\0y", "config.json": CONFIG}, "model.py.*: not Python: .*null bytes"),
        ({"\x1b[31mred": "x", "config.json": CONFIG}, r"there is \?\[31mred, config.json"),
    ],
)
def test_a_gist_that_is_no_model_says_what_is_wrong_where(server, tmp_path, files, said):
    server.put(files, "c" * 40)
    with pytest.raises(ExportError, match=said) as caught:
        fetch_gist(ID)
    assert caught.value.findings
    assert not list(Path(tmp_path).rglob("*.py"))


def test_every_problem_is_told_at_once(server):
    server.put({"model.py": "def", "config.json": "{"}, "c" * 40)
    with pytest.raises(ExportError) as caught:
        fetch_gist(ID)
    assert [(finding.code, finding.file, finding.line) for finding in caught.value.findings] == [
        ("syntax-error", "model.py", 1), ("config-not-json", "config.json", 1),
    ]  # fmt: skip
