"""The verdict follows from the checks, and a report can be read as text, as HTML and by a machine."""

import json
import re
from dataclasses import FrozenInstanceError
from html.parser import HTMLParser

import pytest

from utils.validation.report import STATUSES, WIDTH, Check, Report, judged, named

GOOD, WARN = Check("shapes", "pass", "all right"), Check("context", "warn", "far", "near", "look at it")
BAD = Check("causality", "fail", 'it <leaks> & "moves"', "nothing moves", "close the <script>mask</script>", 0.5)
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
    long = Check("a very long name of a check", "fail", "word " * 40 + "x" * 80, "limit " * 12, "do this " * 30)
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


FIGURE = {"kind": "bars", "title": "Ranks", "labels": ["<i>a</i>"], "values": [1.0], "y_label": "rank"}
DRAWN = Check("rank", "pass", "lowest 3", why="so that <i>you</i> see", figure=FIGURE, tier=2, values={"n": [1, None]})


def test_one_sentence_says_what_it_is_and_what_decided():
    kind = Check("interface", "pass", "GPT, causal, at most 256 tokens")
    assert Report("t", [kind, GOOD]).told == "GPT, causal, at most 256 tokens."
    assert Report("t", [GOOD]).told == ""
    assert Report("t", [kind, WARN, BAD]).told.endswith('tokens. Fails first: causality: it <leaks> & "moves"')
    report = Report("t", [GOOD, WARN])
    assert report.told == "Look at first: context: far"
    assert report.told in str(report)
    assert report.told in Page(report._repr_html_()).text
    assert len(Report("t", [Check("a", "fail", "word " * 300)]).told) < 200


def test_tiers_have_headings_where_there_are_several():
    report = Report("t", [DRAWN, GOOD])
    text, html = str(report), Page(report._repr_html_())
    for shown in (text, html.text):
        assert shown.index("Tier 1: is it sound?") < shown.index("shapes") < shown.index("Tier 2: how does it behave?")
        assert shown.index("Tier 2") < shown.index("lowest 3")
    assert "Tier" not in str(Report("t", [DRAWN]))
    assert Report("t", [Check("a", "fail", "b", tier=3), GOOD]).verdict == "not sound"
    with pytest.raises(ValueError, match=r"tier must be one of 1, 2, 3; got 4"):
        Check("a", "pass", "b", tier=4)
    assert Report("a", [GOOD]).merge(Report("b", [DRAWN])).checks == (GOOD, DRAWN)


def test_html_shows_why_and_the_figure():
    page = Page(Report("t", [DRAWN])._repr_html_())
    assert "so that <i>you</i> see" in page.text
    assert page.tags.count("img") == 1
    assert "i" not in page.tags
    broken = Page(Report("t", [Check("a", "pass", "b", figure={"kind": "<i>"})])._repr_html_())
    assert "The figure cannot be drawn: a figure's kind is one of bars" in broken.text
    assert "img" not in broken.tags


def test_page_is_complete_and_closed(tmp_path):
    path = Report("<b>Bold</b>", [GOOD, DRAWN, BAD]).save(tmp_path / "report.html")
    html = path.read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "prefers-color-scheme: dark" in html
    assert html.count("data:image/png;base64,") == 1
    assert not re.search(r"<script|<link|https?:|@import|url\(|<b>| on\w+=", html)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_dict_is_read_back():
    report = Report("t", [GOOD, WARN, DRAWN, SKIP])
    again = Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again.to_dict() == Report.from_dict(again.to_dict()).to_dict()
    assert [check.name for check in again.checks] == ["shapes", "context", "rank", "speed"]
    assert (again.checks[2].why, again.checks[2].tier) == (DRAWN.why, 2)
    assert again.checks[2].figure == FIGURE | {"log": False}
    assert again.checks[2].values == {"n": [1, None]}
    assert str(again) == str(report)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "great"}, "status must be one of"),
        ({"status": None}, "status must be text; got NoneType"),
        ({"name": 3}, "name must be text; got int"),
        ({"seconds": "1"}, "seconds must be a number"),
        ({"seconds": float("nan")}, "seconds must be a number"),
        ({"tier": 9}, "tier must be one of 1, 2, 3; got 9"),
        ({"tier": True}, "tier must be one of"),
        ({"tier": [1]}, "tier must be one of"),
        ({"values": [1]}, "values are a dict; got list"),
        ({"values": {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}}}, "deeper than 6"),
        ({"values": {"a": [0] * 20_001}}, "more than 20,000 items"),
        ({"values": {"a": 10**400}}, "values are numbers"),
        ({"values": {"a": b"x"}}, "got bytes"),
    ],
)
def test_a_hostile_dict_is_refused(change, said):
    found = Report("t", [GOOD]).to_dict()
    found["checks"][0] |= change
    with pytest.raises(ValueError, match=said):
        Report.from_dict(found)


def test_a_hostile_dict_is_cleaned():
    found = Report("t", [DRAWN]).to_dict() | {"verdict": "sound", "title": "a\x1b[2Jb"}
    found["checks"][0] |= {
        "status": "fail", "measured": "x" * 3000 + "\x00", "figure": {"kind": "bars"}, "values": {"v": float("inf")}
    }  # fmt: skip
    report = Report.from_dict(found)
    assert report.title == "a[2Jb"
    assert report.verdict == "not sound"
    assert len(report.checks[0].measured) == 2000
    assert report.checks[0].figure is None
    assert "Its figure was left out: labels must be a list" in report.checks[0].advice
    assert report.checks[0].values == {"v": None}
    for wrong in (None, [], {}, {"title": "t", "checks": [GOOD]}, {"title": "t", "checks": [{}] * 201}, {"checks": []}):
        with pytest.raises(ValueError, match="a report|a check|a list"):
            Report.from_dict(wrong)
