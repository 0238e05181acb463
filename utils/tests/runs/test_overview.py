"""Runs side by side: one row for each, as text and as HTML."""

import pytest

from utils.config.load import load_config
from utils.runs.folder import RunFolder
from utils.runs.overview import overview


@pytest.fixture
def runs(tmp_path):
    """A run that is over, one that never began, and one with a name HTML would misread."""
    made = [RunFolder(tmp_path / name) for name in ("done", "new", "<b>")]
    for run in made:
        run.create(load_config("debug"))
    state = {"step": 20, "total_steps": 20, "best_val_loss": 1.23456, "updated": "2026-11-20T12:34:56.789Z"}
    made[0].write_json("state", {"status": "completed", **state})
    return made


def test_one_row_for_each_run(runs):
    table = overview(runs)
    assert table.header == ("run", "status", "step", "best val loss", "last active (UTC)")
    assert list(table.rows) == [
        ("done", "completed", "20/20", "1.2346", "2026-11-20 12:34"),
        ("new", "interrupted", "0/?", "-", "-"),
        ("<b>", "interrupted", "0/?", "-", "-"),
    ]


def test_it_draws_itself(runs):
    assert str(overview(runs)).splitlines()[1] == "done  completed    20/20  1.2346         2026-11-20 12:34"
    assert "&lt;b&gt;" in overview(runs)._repr_html_()
    assert "<b>" not in overview(runs)._repr_html_()


def test_no_run_is_the_header_alone():
    assert str(overview([])) == "run  status  step  best val loss  last active (UTC)"
