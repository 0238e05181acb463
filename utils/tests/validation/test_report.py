"""The verdict follows from the checks, and a report can be read as text, as HTML and by a machine."""

import json
import re
from dataclasses import FrozenInstanceError
from html.parser import HTMLParser

import pytest

from utils.validation.report import STATUSES, WIDTH, Check, Report, judged, named

GOOD, WARN = Check("shapes", "pass", "all right"), Check("context", "warn", "far", "near", "look at it")
BAD = Check(
    "causality", "fail", 'it <leaks> & "moves"', "nothing moves", "close the <script>mask</script>", 0.5
)
SKIP = Check("speed", "skip", "no clock")


class Page(HTMLParser):
    """Fails on tags that do not nest; keeps the visible text and the attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text, self.styles = [], [], "", ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)
        self.styles += ";".join(value for name, value in attrs if name == "style")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([GOOD], "sound"),
        ([GOOD, SKIP], "sound"),
        ([GOOD, WARN], "sound, with warnings"),
        ([WARN], "sound, with warnings"),
        ([GOOD, WARN, BAD], "not sound"),
        ([SKIP, SKIP], "not sound"),
        ([], "not sound"),
    ],
)
def test_verdict(checks, verdict):
    report = Report("t", checks)
    assert report.verdict == verdict
    assert report.passed == (verdict != "not sound")
    assert verdict.upper() in str(report)
    assert f">{verdict}<" in report._repr_html_()


def test_nothing_ran_is_said():
    assert "no check ran" in str(Report("t", []))
    assert "no check ran, 1 skipped" in str(Report("t", [SKIP]))
    assert Report("t", [GOOD, WARN, BAD, SKIP]).summary == "1 passed, 1 warning, 1 failed, 1 skipped"


def test_checks_are_frozen_and_know_four_statuses():
    with pytest.raises(ValueError, match=r"one of pass, warn, fail, skip; got 'ok'"):
        Check("a", "ok", "b")
    with pytest.raises(FrozenInstanceError):
        GOOD.status = "fail"
    checks = [GOOD]
    report = Report("t", checks)
    checks.append(BAD)
    assert report.verdict == "sound"


def test_text_is_aligned_and_fits():
    long = Check(
        "a very long name of a check", "fail", "word " * 40 + "x" * 80, "limit " * 12, "do this " * 30
    )
    lines = str(Report("Is it sound?", [GOOD, long, WARN])).splitlines()
    assert max(map(len, lines)) <= WIDTH == 110
    rule = next(line for line in lines if line.startswith("----"))
    starts = [match.start() for match in re.finditer("-+", rule)]
    row = next(line for line in lines if line.startswith("warn"))
    assert [row[starts[1] :][:7], row[starts[2] :][:3], row[starts[3] :][:4]] == ["context", "far", "near"]
    assert "-> look at it" in lines[-1]


def test_html_is_escaped_nested_and_self_contained():
    html = Report("<b>Bold</b>", [GOOD, WARN, BAD, SKIP])._repr_html_()
    page = Page(html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    for text in (
        "<b>Bold</b>",
        'it <leaks> & "moves"',
        "close the <script>mask</script>",
        "0.50 s",
        *STATUSES,
    ):
        assert text in page.text
    assert not re.search(r"https?:|<link|<style|<img|@import|url\(|class=", html)
    assert page.tags.count("tr") == 5


def test_html_sets_no_page_colours():
    """Words take the page's own colour and cells are transparent: dark and light pages both stay readable."""
    styles = Page(Report("t", [GOOD, WARN, BAD, SKIP])._repr_html_()).styles
    assert set(re.findall(r"background:([^;]+)", styles)) == {"transparent"}
    assert "currentColor" in styles
    assert "rgba(" in styles
    assert not re.search(r"(?<![-\w])color:(black|white|#000|#fff)", styles)


def test_dict_is_json_without_nan():
    check = Check(
        "a",
        "warn",
        "b",
        values={"nan": float("nan"), "inf": [float("inf"), 1], "n": 2, "ok": True, "no": None},
    )
    found = json.loads(json.dumps(Report("t", [check, BAD]).to_dict(), allow_nan=False))
    assert found["verdict"] == "not sound"
    assert found["passed"] is False
    assert found["counts"] == {"pass": 0, "warn": 1, "fail": 1, "skip": 0}
    assert found["checks"][0]["values"] == {"nan": None, "inf": [None, 1], "n": 2, "ok": True, "no": None}
    assert found["checks"][1]["seconds"] == 0.5


def test_judged_lets_the_worst_finding_decide():
    findings = [("warn", "w", "do w."), ("fail", "f", "do f.")]
    check = judged("a", findings, "fine", "t", {"n": 1})
    assert (check.status, check.measured, check.advice) == ("fail", "f; w", "do f. do w.")
    assert judged("a", [], "fine", "t", {}).measured == "fine"
    assert named(list("abcdef")) == "a, b, c, d and 2 more"
