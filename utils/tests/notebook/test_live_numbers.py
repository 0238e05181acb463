"""How fast a run is and where its time goes, in a cell: true to its state, and safe whatever is in it."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from utils.notebook.display import RunView
from utils.notebook.find_rate import round_marks
from utils.notebook.live_chart import WIDTH, split_bar
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.tests.tiny import tiny_config

STATE = {
    "status": "running", "step": 5, "total_steps": 10, "tokens_per_second": 12_345.0, "mfu": 0.43, "eta_seconds": 125,
    "peak_memory": 1_310_000_000, "share/forward": 0.3, "share/backward": 0.6, "share/other": 0.001,
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(tiny_config(run.path))
    run.write_json("state", STATE)
    return run


def test_a_running_run_shows_its_numbers_once(run: RunFolder):
    with RunLock(run.path):
        view = RunView(run)
        page = view._repr_html_()
        assert view.numbers() == {
            "tokens per second": "12.3k", "of the peak (MFU)": "43 %", "time left": "2:05", "peak memory": "1.31 GB",
        }  # fmt: skip
    for value in view.numbers().values():
        assert page.count(f">{value}<") == 1
    assert "tokens/s" not in page  # they stand below the line, not in it
    assert "12.3k tokens/s  mfu 43 %  2:05 left" not in page


def test_a_run_that_ended_has_no_time_left(run: RunFolder):
    assert "time left" not in RunView(run).numbers()
    run.write_json("state", {"status": "completed", "peak_memory": 52_000_000})
    assert RunView(run).numbers() == {"peak memory": "52 MB"}
    run.write_json("state", {})
    assert "<svg" not in RunView(run)._repr_html_()


def test_the_bar_is_as_wide_as_the_chart_and_each_part_as_its_share():
    page = split_bar({"forward": 0.25, "backward": 0.5, "saving": 0.001, "other": 0.249})
    svg = ET.fromstring(page)
    pieces = list(svg.iter(f"{SVG}rect"))
    starts = [float(piece.get("x")) for piece in pieces]
    assert starts == pytest.approx([0, 0.25 * WIDTH, 0.75 * WIDTH, 0.751 * WIDTH], abs=0.1)
    assert all(float(piece.get("x")) + float(piece.get("width")) <= WIDTH for piece in pieces)
    assert [piece[0].text for piece in pieces] == ["forward 25 %", "backward 50 %", "saving 0.1 %", "other 25 %"]
    words = "".join(svg.itertext())
    assert "saving 0 %" not in words
    assert split_bar({}) == split_bar({"forward": 0.0}) == ""


def test_what_a_run_survived_is_said_like_an_alert(run: RunFolder):
    rows = [("skipped", 3, "the loss was nan"), ("rolled_back", 4, "back to step 2"), ("out_of_memory", 1, "<8> rows")]
    text = "".join(f'{{"event": "{kind}", "step": {step}, "text": "{said}"}}\n' for kind, step, said in rows)
    (run.path / "events.jsonl").write_text(text)
    page = RunView(run)._repr_html_()
    for words in ("step 1: &lt;8&gt; rows", "step 3: the loss was nan", "step 4: back to step 2"):
        assert page.count(words) == 1


def test_the_marks_of_a_loss_axis_are_round_and_few():
    assert round_marks(4.72, 8.26) == [5, 6, 7, 8]
    assert round_marks(0.0131, 0.0169) == pytest.approx([0.014, 0.015, 0.016])
    for high in (1e-9, 0.7, 1.0, 9.99, 10.0, 1e5):
        assert 2 <= len(round_marks(0.0, high)) <= 7


def test_what_a_run_chose_by_itself_is_said_quietly(run: RunFolder):
    (run.path / "events.jsonl").write_text('{"event": "note", "step": 0, "text": "batch_size=auto is <8>"}\n')
    page = RunView(run)._repr_html_()
    assert page.count("batch_size=auto is &lt;8&gt;") == 1
    assert "#dc2626" not in page  # it is no alert


def test_nonsense_in_a_state_is_not_drawn(run: RunFolder):
    script = "<img src=x>"
    run.write_json("state", {**dict.fromkeys(STATE, script), "share/forward": -4, "share/data": 1e200, "mfu": script})
    page = RunView(run)._repr_html_()
    assert "<img" not in page
    assert RunView(run).numbers() == {}
