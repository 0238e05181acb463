"""A model chosen in one notebook is the one the other begins with; nobody's code runs here."""

import sys
from pathlib import Path

import pytest

from utils.notebook.model import check_model, choose_model, show_model
from utils.notebook.settings import choose
from utils.runtime.files import sha256_file
from utils.tests.walls import needs_walls

pytestmark = needs_walls

EXPORTS = Path(__file__).parents[3] / "tests" / "exports"
DECODER = EXPORTS / "decoder"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_chosen_model_shows_where_it_came_from_and_what_its_code_touches():
    before = set(sys.modules)
    model = choose_model(str(DECODER))
    for shown in (repr(model), model._repr_html_()):
        assert sha256_file(DECODER / "model.py") in shown
        assert "nothing unusual found" in shown
    new = [str(getattr(sys.modules[name], "__file__", "")) for name in set(sys.modules) - before]
    assert not any(path.endswith("model.py") and "utils" not in path for path in new)  # it was read and not run


def test_training_begins_with_the_model_that_was_looked_at():
    assert choose("debug").model.kind == "gpt"  # nothing was looked at yet
    choose_model(str(DECODER))
    remembered = choose("debug")
    assert (remembered.model.kind, remembered.model.ref) == ("builder", str(DECODER))
    assert choose("debug", model=str(EXPORTS / "encoder")).model.ref == str(EXPORTS / "encoder")


def test_a_preset_that_was_looked_at_is_trained():
    choose_model("bdh-small")
    assert choose("debug").model.kind == "bdh"
    assert choose("debug", model="gpt-small").model.shape.n_layer == 12


def test_the_environment_replaces_the_model(monkeypatch):
    monkeypatch.setenv("TBT_MODEL", str(DECODER))
    assert choose_model("quickstart").found.kind == "builder"


def test_a_name_that_leads_nowhere_says_what_is_understood():
    with pytest.raises(ValueError, match="nowhere-to-be-found"):
        choose_model("nowhere-to-be-found")


def test_a_report_draws_itself(capsys):
    report = check_model(choose_model(str(EXPORTS / "broken_no_head")), 1)
    assert not report.passed
    assert "no-output-head" in repr(report)
    assert "no-output-head" in report._repr_html_()


def test_the_model_of_a_run_is_shown_before_it_trains():
    config = choose("debug", model=str(DECODER))
    assert "output_projection" in repr(show_model(config))
    assert "blocks" in repr(show_model(choose("debug", model="debug")))
