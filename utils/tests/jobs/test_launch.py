"""Workers: started, joined, stopped, and what they say when they fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.config.schema import RunConfig
from utils.jobs.launch import ROOT, Job, launch
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.tests.tiny import tiny_config

LONG = ("train.max_steps=3000", "train.eval_every=0", "train.sample_every=0", "train.save_every=0")


def until(what, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def watch(job: Job) -> tuple[int, str]:
    for _ in job.watch():
        pass
    return job.result()


def test_a_run_from_start_to_end(tmp_path: Path):
    job = launch(tiny_config(tmp_path / "run"))
    states = [run.state().get("step") for run in job.watch()]
    assert states[-1] == 12
    assert job.result() == (0, "")
    assert launch(tiny_config(tmp_path / "run")).child is None  # nothing left to do


def test_a_second_launch_joins_the_first_and_may_stop_it(tmp_path: Path):
    config = tiny_config(tmp_path / "run", *LONG)
    first = launch(config, own_session=True)
    until(lambda: RunFolder(config.run_dir).status() == "running")
    second = launch(config)
    assert second.child is None
    second.send(signal.SIGTERM)
    assert watch(second)[0] == 130  # it only sees that the run was interrupted
    assert watch(first)[0] == 143
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == 1


def test_two_launches_at_once_have_one_worker(tmp_path: Path):
    config = tiny_config(tmp_path / "run", "train.max_steps=300")
    jobs = [launch(config), launch(config)]
    assert [watch(job)[0] for job in jobs] == [0, 0]
    events = [event["event"] for event in RunFolder(config.run_dir).events()]
    assert events.count("started") == 1
    assert "resumed" not in events


def test_a_killed_worker_is_seen(tmp_path: Path):
    job = launch(tiny_config(tmp_path / "run", *LONG))
    until(lambda: job.run.status() == "running")
    job.child.kill()
    assert watch(job) == (137, "the worker was killed by SIGKILL (was there too little memory?)")
    assert job.run.status() == "interrupted"


def test_a_stranger_with_the_same_pid_gets_no_signal(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(tmp_path / "run"))
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run.write_json("state", {"process": {"boot": "another", "pid": stranger.pid, "start": "1"}})
    Job(run).send(signal.SIGKILL)
    time.sleep(0.2)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (("train.device=cuda",), 2, "train.device=cuda is not available here"),
        (("model.shape.vocab_size=9",), 2, "smaller than the tokenizer's vocabulary of 256"),
        (
            ("train.learning_rate=1e30", "train.min_lr=0", "train.grad_clip=0", "train.warmup_steps=0"),
            1,
            "training cannot",
        ),
    ],
)
def test_why_a_worker_failed(tmp_path: Path, overrides: tuple[str, ...], code: int, words: str):
    if "train.device=cuda" in overrides and os.path.exists("/dev/nvidia0"):
        pytest.skip("a GPU is here: cuda is no error")
    job = launch(tiny_config(tmp_path / "run", *overrides))
    got = watch(job)
    assert got[0] == code
    assert words in got[1]
    assert (tmp_path / "run").exists() == (code == 1)  # a request that was wrong from the start leaves nothing


def test_a_worker_finds_the_folder_taken(tmp_path: Path):
    config: RunConfig = tiny_config(tmp_path / "run")
    RunFolder(config.run_dir).create(config)
    with RunLock(tmp_path / "run"):
        words = [sys.executable, "-m", "utils.jobs.worker", config.run_dir]
        got = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert got.returncode == 75
    assert "written by another process" in got.stderr


def test_launching_imports_no_torch_and_waits_for_no_terminal(tmp_path: Path):
    code = (
        "import sys; from utils.tests.tiny import tiny_config; from utils.jobs.launch import launch\n"
        f"job = launch(tiny_config({str(tmp_path / 'run')!r})); list(job.watch()); print(job.result())\n"
        "sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code]
    got = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (got.returncode, got.stdout) == (0, "(0, '')\n"), got.stderr


def test_a_run_that_was_there_before_is_never_removed(tmp_path: Path):
    config = tiny_config(tmp_path / "run")
    watch(launch(config))
    (tmp_path / "run/state.json").write_text("")  # as a power cut may leave it
    settings = tmp_path / "run/config.yaml"
    settings.write_text(settings.read_text().replace("device: auto", "device: mps"))
    changed = config.model_copy(update={"train": config.train.model_copy(update={"device": "mps"})})
    assert watch(launch(changed))[0] in (0, 2)
    assert list((tmp_path / "run/checkpoints").glob("step-*"))


def test_files_in_the_users_folder_do_not_stand_in_for_ours(tmp_path: Path):
    for name in ("utils.py", "queue.py", "random.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the user was imported')\n")
    code = (
        f"import sys; sys.path = [{str(ROOT)!r}, *filter(None, sys.path)]\n"
        "from utils.tests.tiny import tiny_config; from utils.jobs.launch import launch\n"
        "job = launch(tiny_config('run')); list(job.watch()); print(job.result())"
    )
    got = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert got.stdout == "(0, '')\n", got.stderr


def test_a_run_is_alive_before_torch_is_imported(tmp_path: Path):
    job = launch(tiny_config(tmp_path / "run", *LONG))
    seen = []
    until(lambda: seen.append(job.run.status()) or seen[-1] == "running")
    assert "queued" in seen
    assert set(seen[seen.index("queued") :]) == {"queued", "running"}
    job.send(signal.SIGTERM)
    assert watch(job)[0] == 143


def test_edited_text_is_not_taken_for_the_old(tmp_path: Path):
    book = tmp_path / "book.txt"
    book.write_text("the cat sat on the mat\n" * 200)
    config = tiny_config(tmp_path / "run", "data.source=text", f"data.path={book}")
    watch(launch(config))
    book.write_text("the dog sat on the mat\n" * 200)
    with pytest.raises(ValueError, match="was trained on other text"):
        launch(config)


def test_a_run_goes_on_where_its_text_is_gone(tmp_path: Path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"the cat sat on mat {i} and saw {i * i} fish\n" for i in range(300)))
    config = tiny_config(tmp_path / "run", "data.source=text", f"data.path={book}")
    assert watch(launch(config)) == (0, "")
    book.unlink()
    assert launch(config).run.status() == "completed"
    with pytest.raises(FileNotFoundError, match=r"book\.txt"):
        launch(tiny_config(tmp_path / "other", "data.source=text", f"data.path={book}"))
