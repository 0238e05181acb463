"""What a boxed process leaves behind, and how this side takes it: nothing of it runs, hangs or moves a cursor here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from utils.cli.main import app
from utils.jobs.complete import _here, complete
from utils.jobs.describe import clean_facts, clean_findings, consents, plain
from utils.jobs.find_model import FoundModel, find_model
from utils.jobs.launch import Job, launch
from utils.jobs.prepare import Prepared, place
from utils.jobs.validate import _Asking, _clean, validate
from utils.runs.folder import RunFolder
from utils.runtime.files import sha256_file
from utils.runtime.process import identity
from utils.tests.tiny import tiny_config
from utils.tests.walls import needs_walls

pytestmark = needs_walls

FACTS = {
    "class": "Model", "task": "causal", "vocab_size": 64, "block_size": 32, "notes": [], "findings": [],
    "summary": {"name": "x", "parts": [{"name": "emb", "kind": "Embedding", "parameters": 9, "tied_to": ""}],
                "parameters": 9, "trainable": 9, "weights_mb": 0.1, "training_mb": 0.4, "flops_per_token": 12},
}  # fmt: skip
FINDING = {"code": "odd", "message": "m", "fix": "", "file": "model.py", "line": 3, "severity": "warn"}
CHECK = {"name": "shapes", "status": "pass", "measured": "m"}
ESCAPE = "\x1b]0;owned\x07\u202e"


def stranger(folder: Path, mark: Path) -> Path:
    """A model folder of ours whose source/model.py leaves a mark where it runs outside of a box."""
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "model.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (folder / "source" / "config.json").write_text('{"vocab_size": 64}')
    (folder / "config.json").write_text('{"format": 1, "kind": "builder", "ref": "x"}')
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def begun(tmp_path: Path) -> tuple[RunFolder, Path]:
    """A run of a stranger's model that is as a boxed process may leave it."""
    run, mark = RunFolder(tmp_path / "run"), tmp_path / "mark"
    run.create(tiny_config(run.path, "model.kind=builder", "model.ref=elsewhere"))
    stranger(run.path, mark)
    (run.path / "config.json").unlink()
    run.write_json("source", {"source": {"revision": ""}, "facts": facts(vocab_size=2000), "files": {}})
    return run, mark


def test_without_walls_no_model_from_elsewhere_is_trained(tmp_path: Path):
    run, mark = begun(tmp_path)
    worker = [sys.executable, "-m", "utils.jobs.worker", str(run.path)]
    done = subprocess.run(worker, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not trained without walls" in done.stderr
    assert not mark.exists()


def test_code_that_is_hidden_while_it_is_looked_for_stays_boxed(tmp_path: Path):
    run, mark = begun(tmp_path)
    (run.path / "source" / "model.py").rename(run.path / "source" / "hidden")
    job = launch(run.config())
    assert job.box is not None
    (run.path / "source" / "hidden").rename(run.path / "source" / "model.py")
    for _ in job.watch():
        pass
    assert job.result()[0] != 0
    assert not mark.exists()


def test_what_is_built_here_has_no_room_for_code(tmp_path: Path):
    folder, mark = stranger(tmp_path / "model", tmp_path / "mark"), tmp_path / "mark"
    with pytest.raises(ValueError, match=r"an export holds model\.py"):
        _here(folder, "a", {"max_new_tokens": 1})
    assert not mark.exists()


def test_a_consent_is_to_the_code_that_runs_and_not_to_one_beside_it(tmp_path: Path):
    folder = stranger(tmp_path / "model", tmp_path / "mark")
    (folder / "model.py").write_text("harmless = True\n")
    found = FoundModel("x", "folder", str(folder))
    assert found.sha256 == sha256_file(folder / "source" / "model.py")
    with pytest.raises(ValueError, match="your consent is to"):
        consents(found, sha256_file(folder / "model.py"))


def test_a_run_whose_notes_were_damaged_gets_its_code_anew(tmp_path: Path):
    run, _ = begun(tmp_path)
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.py").write_text("harmless = True\n")
    (run.path / "source.json").write_text("no JSON")
    place(Prepared(run.config(), FoundModel("x", "builder", str(export)), FACTS))
    assert (run.path / "source" / "model.py").read_text() == "harmless = True\n"


@pytest.mark.parametrize("at", ["notes.txt", "source/model.py"])
def test_a_link_opens_nothing_of_the_users(tmp_path: Path, at: str):
    folder, secret = stranger(tmp_path / "model", tmp_path / "mark"), tmp_path / "secret"
    secret.write_text("hf_not_a_real_token")
    (folder / at).unlink(missing_ok=True)
    (folder / at).symlink_to(secret)
    found = FoundModel("x", "folder", str(folder))
    with pytest.raises(ValueError, match=r"is a link to .* put the file itself there"):
        _ = found.read
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    with pytest.raises(ValueError, match="is a link to"):
        place(Prepared(run.config(), found, FACTS))
    assert not (run.path / "source").exists()


def test_an_exports_link_to_a_file_of_the_users_is_refused(tmp_path: Path):
    export, secret = tmp_path / "export", tmp_path / "auth.json"
    export.mkdir()
    secret.write_text('{"token": "hf_not_a_real_token"}')
    (export / "model.py").write_text("from torch import nn\n")
    (export / "config.json").symlink_to(secret)
    with pytest.raises(ValueError, match="is a link to"):
        find_model(str(export))


def test_links_to_folders_are_neither_opened_nor_copied(tmp_path: Path):
    folder, private = stranger(tmp_path / "model", tmp_path / "mark"), tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("x")
    (folder / "innocent").symlink_to(private)
    found = FoundModel("x", "folder", str(folder))
    assert found.read == [folder.resolve()]
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    place(Prepared(run.config(), found, FACTS))
    assert not (run.path / "source" / "innocent").exists()


def test_the_hubs_own_links_are_followed(tmp_path: Path):
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "c", tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1234").write_text("{}")
    (folder / "config.json").symlink_to("../../blobs/1234")
    assert FoundModel("a/b", "hub", str(folder)).read == [folder, blobs / "1234"]


def facts(**changes: object) -> dict:
    return {**FACTS, **changes}


@pytest.mark.parametrize(
    "told",
    [
        None, [], {}, facts(vocab_size="64"), facts(vocab_size=-1), facts(vocab_size=True), facts(block_size=1 << 70),
        facts(task="owned"), facts(task=["causal"]), facts(notes=3), facts(notes=[{}]), facts(summary=None),
        facts(summary={**FACTS["summary"], "parts": [{}]}), facts(findings=[{}]),
        facts(findings=[{**FINDING, "severity": "pass"}]), facts(findings=[{**FINDING, "line": "x"}]),
    ],
)  # fmt: skip
def test_facts_of_a_wrong_shape_are_no_facts(told: object):
    with pytest.raises((KeyError, TypeError, ValueError)):
        clean_facts(told)


def test_facts_lose_what_moves_a_cursor():
    told = clean_facts(facts(**{"class": ESCAPE, "notes": [ESCAPE], "findings": [{**FINDING, "message": ESCAPE}]}))
    assert told["class"] == told["notes"][0] == told["findings"][0]["message"] == "?]0;owned??"
    assert clean_facts(FACTS) == FACTS
    assert clean_findings([FINDING])[0].to_dict() == FINDING


@pytest.mark.parametrize(
    "row",
    [
        {"begin": "x", "tier": "1"}, {"begin": "x", "tier": True}, {"begin": "x", "tier": 9}, {"begin": 3, "tier": 1},
        {"begin": "x"}, {"check": None}, {"check": {**CHECK, "tier": 7}}, {"check": {**CHECK, "seconds": 1e308 * 10}},
        {"check": {**CHECK, "values": {"x": [[[[[[[[1]]]]]]]]}}}, {"check": {**CHECK, "status": "sound"}},
        {"findings": 3}, {"findings": [{"code": "x"}]}, {"facts": {}}, 3, None, "begin",
    ],
)  # fmt: skip
def test_an_answer_of_a_wrong_shape_is_told_as_one(tmp_path: Path, row: object):
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):  # what `answers` turns into a failed check
        list(map(_clean, _Asking(tmp_path, [1])._take(row, True)))


HOSTILE = """
import os
from torch import nn

class Model(nn.Module):
    def __init__(self, vocab_size=64):
        super().__init__()
        self.emb, self.head = nn.Embedding(vocab_size, 16), nn.Linear(16, vocab_size)

    def forward(self, idx):
        for number in os.listdir("/proc/self/fd"):
            try:
                if os.readlink("/proc/self/fd/" + number).endswith("answers.jsonl"):
                    os.write(int(number), {rows!r})
            except OSError:
                pass
        return self.head(self.emb(idx))
"""


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (b"[" * 100_000 + b"\n", "answers that cannot be read (RecursionError"),
        (b"{}\n" * 2_000, "at most 1,000 are read"),
        (json.dumps({"begin": ESCAPE, "tier": 1}).encode() + b"\n3\n", "answers that cannot be read (TypeError"),
    ],
    ids=["deep", "many", "escapes"],
)
def test_what_is_written_among_the_answers_is_a_line_in_the_report(tmp_path: Path, rows: bytes, words: str):
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.py").write_text(HOSTILE.format(rows=rows) if len(rows) < 9_000 else "")
    if len(rows) >= 9_000:
        (export / "model.py").write_text(HOSTILE.replace("{rows!r}", f"{rows[:1]!r} * 100_000 + b'\\n'"))
    (export / "config.json").write_text('{"vocab_size": 64, "block_size": 32}')
    checks = list(validate(find_model(str(export))))
    assert any(words in check.measured and check.status == "fail" for check in checks)
    assert not any("\x1b" in check.name + check.measured + check.advice for check in checks)


def test_a_stream_that_is_no_text_ends(tmp_path: Path):
    folder = stranger(tmp_path / "model", tmp_path / "mark")
    (folder / "source" / "model.py").write_text("import os\nos.write(1, b'[' * 60_000 + b'\\n')\nos._exit(0)\n")
    with pytest.raises(RuntimeError, match="no text of a model"):
        list(complete(folder, "a", max_new_tokens=1))


def test_printed_text_moves_no_cursor_and_keeps_its_letters():
    assert plain("\x1b[2Jé\xa0漢\n\t👩\u200d🚀\x9b\u202e\ud800") == "?[2Jé\xa0漢\n\t👩\u200d🚀???"


def test_a_log_is_read_from_its_end(tmp_path: Path):
    run = RunFolder(tmp_path)
    with run.log.open("wb") as file:
        file.truncate(1 << 33)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nerror: too \x1b[31mbig\n")
    begin = time.monotonic()
    assert Job(run)._last_words() == "too ?[31mbig"
    assert time.monotonic() - begin < 60


def test_a_status_moves_no_cursor(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    run.write_json("state", {"status": "failed", "message": ESCAPE, "step": ESCAPE, "best_val_loss": "x"})
    (run.path / "events.jsonl").write_text(json.dumps({"event": "alert", "step": 1, "text": ESCAPE}))
    done = CliRunner().invoke(app, ["status", str(run.path)])
    assert done.exit_code == 1
    assert done.output.count("?]0;owned??") == 2
    assert "\x1b" not in done.output + CliRunner().invoke(app, ["runs", str(tmp_path)]).output


def test_a_signal_goes_to_who_holds_the_run_whatever_the_run_says(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    code = "import sys, time, pathlib; from utils.runs.lock import RunLock; lock = RunLock(pathlib.Path(sys.argv[1]))"
    code += "; lock.acquire(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        run.write_json("state", {"status": "running", "process": identity(victim.pid)})
        Job(run).send(signal.SIGTERM)
        assert holder.wait(10) == -signal.SIGTERM
        assert victim.poll() is None
    finally:
        for process in (holder, victim):
            process.kill()
            process.wait()
