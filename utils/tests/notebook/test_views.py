"""What cells show: words for a terminal, HTML for a page, both true to the run folder."""

import json
import os
import signal
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from utils.notebook.display import RunView, Text, show_files, show_metrics, show_run, show_samples, show_storage
from utils.notebook.generate import generate
from utils.notebook.live_chart import loss_chart, thin, ticks
from utils.notebook.settings import Settings, choose
from utils.notebook.train import train
from utils.runs.folder import RunFolder
from utils.tests.tiny import tiny_config
from utils.training.run import run_training


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "shown"
    run_training(tiny_config(folder))
    return folder


def rows(steps: int) -> list[dict]:
    train = [{"step": s, "kind": "train", "train/loss": 4 / s**0.5} for s in range(1, steps + 1)]
    return [*train, {"step": steps, "kind": "val", "val/loss": 4.2 / steps**0.5}]


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 12_345])
@pytest.mark.parametrize("floor", [None, 0.1])
def test_the_chart_is_a_picture_that_stays_in_its_frame(steps: int, floor: float | None):
    svg = loss_chart(rows(steps), floor)
    root = ET.fromstring(svg)
    width, height = map(float, root.get("viewBox").split()[2:])
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height
    words = " ".join(text.text for text in root.iter("{http://www.w3.org/2000/svg}text"))
    assert ("best possible 0.100" in words) == (floor is not None)
    assert f"validation {4.2 / steps**0.5:.3f}" in words
    assert len(svg) < 40_000


def test_the_chart_is_empty_before_the_first_row_and_ignores_what_is_missing():
    assert loss_chart([]) == ""
    assert loss_chart([{"step": 1, "kind": "train", "train/loss": None}]) == ""


def test_a_loss_of_zero_has_no_place_on_a_logarithmic_axis():
    rows = [{"step": 1, "kind": "val", "val/loss": 1.0}, {"step": 2, "kind": "val", "val/loss": 0.0}]
    assert loss_chart(rows).count("<circle") == 1


def test_the_floor_is_drawn_below_every_loss_above_it():
    svg = ET.fromstring(loss_chart(rows(100), 0.05))
    floor = next(p for p in svg.iter("{http://www.w3.org/2000/svg}path") if p.get("stroke-dasharray"))
    dot = next(svg.iter("{http://www.w3.org/2000/svg}circle"))
    assert float(floor.get("d").split(",")[1].split("H")[0]) > float(dot.get("cy"))


def test_thinning_keeps_the_ends():
    points = [(float(i), 1.0) for i in range(1000)]
    assert len(thin(points)) == 300
    assert (thin(points)[0], thin(points)[-1]) == (points[0], points[-1])
    assert ticks(0.09, 4.5) == pytest.approx([0.1, 0.2, 0.5, 1, 2])


def test_a_run_shows_itself(run: Path):
    view = show_run(run)
    assert str(view).startswith("completed at step 12, best validation loss")
    assert str(view).endswith(f"run: {run}")
    assert "<svg" in view._repr_html_()
    with pytest.raises(FileNotFoundError, match=f"no run at .*; runs there: {run}"):
        show_run(run.parent / "other")


def test_tables_show_the_run(run: Path):
    assert [line.split()[0] for line in str(show_metrics(run)).splitlines()] == ["step", "4", "8", "12"]
    assert {"6", "12"} <= set(str(show_samples(run)).split())
    assert "model.safetensors" in str(show_files(run))
    assert "GB free" in str(show_storage(run.parent))
    assert "12/12" in str(show_storage(run.parent))
    assert "No runs yet" in str(show_storage(run.parent / "none"))


def test_text_is_escaped_and_the_prompt_is_bold(run: Path):
    assert Text("<b>", "a<")._repr_html_().count("<b>") == 1
    assert "&lt;b&gt;" in Text("<b>", "a<")._repr_html_()
    text = generate(run, "Once", max_new_tokens=10, seed=1)
    assert str(text).startswith("Once")
    assert str(generate(run, "Once", max_new_tokens=10, seed=1)) == str(text)


def test_alerts_are_shown(run: Path):
    view = show_run(run)
    assert "dc2626" not in view._repr_html_()
    with (run / "events.jsonl").open("a") as events:
        events.write('{"event": "alert", "step": 3, "text": "loss <below> floor"}\n')
    assert "loss &lt;below&gt; floor" in view._repr_html_()


def test_what_a_strangers_code_left_in_a_run_is_text_and_nothing_else(tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    script = "<img src=x onerror=alert(1)>"
    events = [f'{{"event": "{kind}", "step": "{script}", "text": "{script}"}}' for kind in ("alert", "sample")]
    events += [f'{{"event": "{kind}", "text": "{script}"}}' for kind in ("alert", "sample")]
    (run.path / "events.jsonl").write_text("\n".join(events))
    rows = [{"step": script, "kind": "val", "val/loss": 1}, {"step": 1, "kind": "val", "val/loss": script}]
    rows += [{"step": 2, "kind": "val", "val/loss": 5e-324}, {"step": 10**14, "kind": "val", "val/loss": 1e299}]
    (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run.write_json("state", {"status": script, "step": script, "entropy_floor": -1, "total_steps": script})
    (run.path / script.replace("/", "")).write_text("")
    for shown in (show_run(run.path), show_metrics(run.path), show_samples(run.path), show_files(run.path)):
        assert "<img" not in shown._repr_html_()
    assert "<img" not in show_storage(tmp_path)._repr_html_()
    assert "&lt;img" in show_run(run.path)._repr_html_()  # the alert without a step is shown


def test_settings_come_from_the_preset_the_call_and_the_environment(monkeypatch):
    monkeypatch.delenv("TBT_PRESET", raising=False)
    monkeypatch.setenv("TBT_SET", "train.seed=5")
    config = choose("debug", "train.max_steps=7", "train.seed=4")
    assert (config.train.max_steps, config.train.seed) == (7, 5)
    monkeypatch.setenv("TBT_PRESET", "llama-small")
    assert choose("debug").model.kind == "llama"
    assert "max_steps: 7" in Settings(config)._repr_html_()
    assert repr(Settings(config)) == f"gpt on stories: {config.run_dir}"


def kill_worker_of(run: Path) -> None:
    while RunFolder(run).status() != "running":
        time.sleep(0.05)
    os.kill(RunFolder(run).state()["process"]["pid"], signal.SIGKILL)


def test_training_in_a_cell_and_its_errors(tmp_path: Path):
    view = train(tiny_config(tmp_path / "run"))
    assert isinstance(view, RunView)
    assert RunFolder(view.path).status() == "completed"
    with pytest.raises(ValueError, match="smaller than the tokenizer's vocabulary"):
        train(tiny_config(tmp_path / "wrong", "model.shape.vocab_size=9"))
    killer = threading.Timer(0, kill_worker_of, [tmp_path / "killed"])
    killer.start()
    with pytest.raises(RuntimeError, match="killed by SIGKILL"):
        train(tiny_config(tmp_path / "killed", "train.max_steps=5000", "train.eval_every=0", "train.sample_every=0"))
    killer.join()
    with pytest.raises(RuntimeError, match="training cannot go on"):
        train(
            tiny_config(
                tmp_path / "nan",
                "train.learning_rate=1e30",
                "train.min_lr=0",
                "train.grad_clip=0",
                "train.warmup_steps=0",
            )
        )
