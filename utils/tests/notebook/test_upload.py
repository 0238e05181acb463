"""Own files in a notebook: what both shapes of a FileUpload's value become, on the real widget where there is one."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.notebook.upload import Upload, upload, uploaded

SEVEN = {"a b.txt": {"metadata": {"name": "a b.txt", "type": "text/plain", "size": 3}, "content": b"one"}}
EIGHT = ({"name": "a b.txt", "type": "text/plain", "size": 3, "content": memoryview(b"one"), "last_modified": None},)


@pytest.mark.parametrize("value", [SEVEN, EIGHT], ids=["7", "8"])
def test_both_shapes_of_a_value_are_understood(value):
    assert uploaded(value) == [("a b.txt", b"one")]


def test_an_upload_says_what_to_do_next(tmp_path: Path):
    taken = Upload(tmp_path / "data")
    assert repr(taken).startswith("No file yet: choose some (.txt, .md, .csv")
    assert taken.words == []
    words = taken.keep([("../my book.txt", b"once upon a time")])
    assert words == taken.words == ["data.source=text", f"data.path={tmp_path / 'data' / 'my book.txt'}"]
    assert repr(taken) == f"Saved. To train on it: train(choose('quickstart', 'data.source=text', {words[1]!r}))"
    assert (tmp_path / "data" / "my book.txt").read_bytes() == b"once upon a time"


def test_a_problem_is_shown_and_not_raised(tmp_path: Path):
    taken = Upload(tmp_path / "data")
    assert taken.keep([("<b>.pdf", b"x")]) == []
    assert repr(taken) == f"Not kept: {taken.problem}"
    assert "_b_.pdf: files of this ending are not read" in taken.problem
    page = taken._repr_mimebundle_()["text/html"]
    assert "color:#dc2626" in page
    assert not (tmp_path / "data").exists()
    taken.keep([("fine.txt", b"x")])
    assert taken.words
    assert not taken.problem


def test_without_widgets_it_is_a_sentence(tmp_path: Path):
    code = (
        "import sys; sys.modules['ipywidgets'] = None\n"  # as where it is not installed
        "from utils.notebook.upload import upload\n"
        "taken = upload('data'); print(repr(taken)); print(sorted(taken._repr_mimebundle_()))"
    )
    root = Path(__file__).parents[3]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "or put them into data/ and name that as data.path" in ran.stdout
    assert ran.stdout.endswith("['text/html', 'text/plain']\n")


def test_the_widget_saves_files_when_they_come_and_waits_for_none(tmp_path: Path):
    ipywidgets = pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    eight = int(ipywidgets.__version__.split(".")[0]) >= 8
    taken = upload(tmp_path / "data")
    assert taken.words == []
    assert isinstance(taken.button, ipywidgets.FileUpload)
    assert taken.button.multiple
    bundle = taken._repr_mimebundle_()
    assert "No file yet" in bundle["text/plain"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    for count, (name, data) in enumerate((("first.txt", b"one"), ("second.jsonl", b'{"text": "two"}\n')), 1):
        if eight:  # what the browser sends
            value = [{"name": name, "type": "", "size": len(data), "content": memoryview(data), "last_modified": 0}]
            taken.button.set_state({"value": value})
        else:
            metadata = [{"name": name, "type": "", "size": len(data), "lastModified": 0}]
            taken.button.set_state({"data": [memoryview(data)], "metadata": metadata, "_counter": count})
        assert (tmp_path / "data" / name).read_bytes() == data
        assert taken.words[1] == f"data.path={tmp_path / 'data' / name}"
        assert f"data.path={tmp_path / 'data' / name}" in taken.notice.value
