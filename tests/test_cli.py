"""`tbt` as a process: every command, every exit code."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.tests.tiny import TINY, weights_hash

TRAIN = ("train", "--preset", "debug", *TINY)
NO_COMMANDS = ("main", "options", "prepare-bar", "progress")  # files of utils/cli/ that commands share


def test_help_imports_no_torch(tbt):
    code = "import sys; import utils.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    got = tbt("--help")
    assert got.returncode == 0
    for command in sorted(path.stem.replace("_", "-") for path in (ROOT / "utils/cli").glob("[!_]*.py")):
        if command in NO_COMMANDS:
            continue
        assert f" {command} " in got.stdout
        assert tbt(command, "--help").returncode == 0


def test_train_look_generate(tbt, tmp_path: Path):
    got = tbt(*TRAIN, "--run-dir", "runs/a")
    assert got.returncode == 0, got.stderr
    assert got.stdout.splitlines()[-1] == "run: runs/a"
    assert "completed at step 12, best validation loss" in got.stdout

    status = json.loads(tbt("status", "--json").stdout)
    assert (status["status"], status["step"], status["run"]) == ("completed", 12, "runs/a")
    assert "completed at step 12" in tbt("status", "runs/a").stdout
    assert [run["run"] for run in json.loads(tbt("runs", "--json").stdout)] == ["runs/a"]
    assert "12/12" in tbt("runs").stdout

    words = ("generate", "runs/a", "--prompt", "Once", "--max-new-tokens", 20, "--seed", 3)
    text = tbt(*words).stdout
    assert text.startswith("Once")
    assert tbt(*words, "--no-stream").stdout == text
    assert tbt(*words[:-1], 4).stdout != text
    greedy = [tbt(*words[:-1], seed, "--temperature", 0).stdout for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert tbt("generate", "runs/a", "--checkpoint", "4", "--max-new-tokens", 5).returncode == 2
    assert tbt("generate", "runs/a", "--checkpoint", "latest", "--max-new-tokens", 0).returncode == 0
    # A checkpoint is a whole model: it can be moved.
    (tmp_path / "runs/a/checkpoints/step-0000000012").rename(tmp_path / "moved")
    assert tbt(*words[:1], "moved", *words[2:]).stdout == text

    summary = json.loads(tbt("summary", "moved", "--json").stdout)
    assert summary["parameters"] > 5000
    again = tbt(*TRAIN, "--run-dir", "runs/a")
    assert again.returncode == 0
    assert "completed at step 12" in again.stdout


def test_data_and_config(tbt):
    data = json.loads(tbt("data", "inspect", "-p", "debug", "--json").stdout)
    assert data["vocab_size"] == 256
    assert 0.05 < data["entropy_floor"] < 0.5
    assert "best possible loss" in tbt("data", "inspect", "-p", "debug").stdout
    shown = tbt("config", "show", "-p", "debug", "train.max_steps=7").stdout
    assert "max_steps: 7" in shown
    schema = json.loads(tbt("config", "schema").stdout)
    assert schema["properties"].keys() >= {"model", "data", "train", "checkpoint", "run_dir"}
    assert "quickstart" in tbt("config", "presets").stdout
    assert "train.learning_rate" in tbt("config", "fields").stdout


def test_saved_config_is_accepted_back(tbt, tmp_path: Path):
    assert tbt(*TRAIN, "--run-dir", "runs/a").returncode == 0
    got = tbt("train", "--config", "runs/a/config.yaml", "--run-dir", "runs/b")
    assert got.returncode == 0, got.stderr
    assert weights_hash(tmp_path / "runs/a") == weights_hash(tmp_path / "runs/b")


def test_inline_trains_the_same(tbt, tmp_path: Path):
    assert tbt(*TRAIN, "--run-dir", "runs/a").returncode == 0
    assert tbt(*TRAIN, "--run-dir", "runs/b", "--inline").returncode == 0
    assert weights_hash(tmp_path / "runs/a") == weights_hash(tmp_path / "runs/b")


def test_background_returns_at_once_and_is_watched_and_joined(tbt, tmp_path: Path):
    words = (*TRAIN, "train.max_steps=400", "train.eval_every=100", "train.save_every=100", "--run-dir", "runs/a")
    assert tbt(*words, "--background").stdout == "run: runs/a\n"
    joined = tbt(*words)  # the same command joins the worker instead of starting a second one
    assert joined.returncode == 0, joined.stderr
    assert tbt("status", "runs/a", "--watch").returncode == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "runs/a/events.jsonl").read_text().splitlines()]
    assert events.count("started") == 1
    assert "resumed" not in events


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_the_same_command_goes_on(tbt, tmp_path: Path, number: int, code: int):
    words = (*TRAIN, "train.max_steps=600", "train.save_every=0", "train.eval_every=0", "train.sample_every=0")
    command = [sys.executable, "-m", "utils", *words, "--run-dir", "runs/a"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "runs/a/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    saved = list((tmp_path / "runs/a/checkpoints").glob("step-*"))
    assert len(saved) == 1
    assert json.loads(tbt("status", "--json").stdout)["status"] == "interrupted"
    assert tbt(*words, "--run-dir", "runs/a").returncode == 0
    assert tbt(*words, "--run-dir", "runs/b").returncode == 0
    assert weights_hash(tmp_path / "runs/a") == weights_hash(tmp_path / "runs/b")


def test_a_terminal_gets_a_bar(tmp_path: Path):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "utils", *TRAIN, "train.max_steps=200", "--run-dir", "runs/a"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "140"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=follower, stderr=follower)
    os.close(follower)
    output = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        output += data
    os.close(leader)
    assert process.wait() == 0
    text = output.decode()
    assert "━" in text
    assert "200/200" in text
    assert "tok/s" in text
    assert "val " in text


def test_secrets_do_not_reach_the_worker(tbt, tmp_path: Path):
    canary = "canary-5f1e7"
    # The worker prints its environment because Python runs this at its start.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'utils.jobs.worker' in sys.orig_argv: print(dict(os.environ))\n"
    )
    environment = {
        "HF_TOKEN": canary,
        "WANDB_API_KEY": canary,
        "MY_PASSWORD": canary,
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
    }
    got = tbt(*TRAIN, "--run-dir", "runs/a", env=environment)
    assert got.returncode == 0
    log = (tmp_path / "runs/a/log.txt").read_text()
    assert "OMP_NUM_THREADS" in log
    found = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert found == []


def test_nohup_is_heard(tmp_path: Path):
    words = (*TRAIN, "train.max_steps=600", "train.save_every=0", "train.eval_every=0", "train.sample_every=0")
    command = ["nohup", sys.executable, "-m", "utils", *words, "--run-dir", "runs/a"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    metrics = tmp_path / "runs/a/metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_wrong_request_in_the_background_is_told(tbt, tmp_path: Path):
    got = tbt(*TRAIN, "--background", "model.shape.vocab_size=9", "--run-dir", "runs/a")
    assert got.returncode == 2
    assert "smaller than the tokenizer's vocabulary" in got.stderr
    assert not (tmp_path / "runs/a").exists()


def test_a_loss_that_explodes_is_no_traceback(tbt):
    explode = ("train.learning_rate=1e30", "train.min_lr=0", "train.grad_clip=0", "train.warmup_steps=0")
    for how in ((), ("--inline",)):
        got = tbt(*TRAIN, *explode, *how, "--run-dir", f"runs/{len(how)}")
        assert got.returncode == 1
        assert got.stderr.startswith("error: ")
        assert "Traceback" not in got.stderr


def test_stop_resume_and_go_further(tbt, tmp_path: Path):
    endless = (*TRAIN, "train.max_steps=100000", "train.warmup_steps=2", "train.save_every=0", "train.eval_every=0")
    try:
        assert tbt(*endless, "--run-dir", "runs/a", "--background").returncode == 0
        busy = tbt("resume", "runs/a", "--more-steps", 5)
    finally:
        stopped = tbt("stop", "runs/a")
    assert "runs/a is being trained: `tbt stop runs/a`" in busy.stderr
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.startswith("interrupted at step ")
    step = json.loads(tbt("status", "runs/a", "--json").stdout)["step"]
    assert tbt("stop", "runs/a").stdout == stopped.stdout  # there is nothing more to stop

    (tmp_path / "runs/a").rename(tmp_path / "elsewhere")
    got = tbt("resume", "elsewhere", f"train.max_steps={step + 4}", "train.log_every=2")
    assert got.returncode == 0, got.stderr
    words = f"changed: not as it would have without (train.max_steps: 100000 -> {step + 4})"
    assert f"step {step}: went on from step-{step:010d}, {words}" in got.stdout
    assert f"completed at step {step + 4}" in got.stdout
    assert f"train.max_steps: 100000 -> {step + 4}" in got.stderr
    assert "the learning rate goes from 0.003 to" in got.stderr

    further = tbt("resume", "elsewhere", "--more-steps", 3, "--checkpoint", "best")
    assert f"completed at step {step + 7}" in further.stdout, further.stderr
    refused = tbt("resume", "elsewhere", "--more-steps", 3, "train.learning_rate=1e-3")
    assert refused.returncode == 2
    assert "say --accept train.learning_rate if you want that" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert tbt("resume", "nowhere").returncode == 2
