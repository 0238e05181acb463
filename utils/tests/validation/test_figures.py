"""Figures: data from an untrusted process is refused or cleaned, and what is left becomes a picture."""

import base64
import json
import math
import re
import struct
import xml.etree.ElementTree as ElementTree

import pytest

from utils.validation.figures import DPI, MAX_BARS, bars, check_figure, clean_text, describe, draw, figure_html

BARS = {"kind": "bars", "title": "Ranks", "labels": ["a", "b", "c"], "values": [1, 2.5, None], "y_label": "rank"}
LINES = {
    "kind": "lines", "title": "Loss", "x_label": "step", "y_label": "nats", "floor": 0.5,
    "series": [{"name": "one", "x": [0, 1, 2], "y": [3.0, math.nan, 1.0]}, {"name": "two", "x": [], "y": []}],
}  # fmt: skip
HEAT = {
    "kind": "heatmaps", "title": "Maps", "x_label": "seen", "y_label": "looking",
    "panels": [{"title": "L0 H0", "rows": [[1, 0], [0.5, None]]}, {"title": "L0 H1", "rows": [[0.1, 0.2, 0.3]]}],
}  # fmt: skip


def png_size(picture: bytes) -> tuple[int, int]:
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", picture[16:24])


def svg_text(spec: dict) -> str:
    """Every word in the SVG, which matplotlib keeps as a comment beside the drawn glyphs."""
    drawn = draw(spec, "svg").decode()
    ElementTree.fromstring(drawn)  # well-formed
    return "\n".join(re.findall(r"<!--(.*?)-->", drawn, flags=re.DOTALL))


@pytest.mark.parametrize("spec", [BARS, LINES, HEAT], ids=lambda spec: spec["kind"])
def test_every_kind_is_drawn(spec):
    clean = check_figure(spec)
    assert check_figure(json.loads(json.dumps(clean, allow_nan=False))) == clean
    width, height = png_size(draw(spec))
    assert 550 <= width <= 850
    assert 150 <= height <= 2000
    assert spec["title"] in svg_text(spec)
    html = figure_html(spec)
    picture = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', html)[1])
    assert png_size(picture) == (width, height)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "pie"}, "bars, lines, heatmaps; got 'pie'"),
        ({"kind": ["bars"]}, "kind is one of"),
        ({"title": 3}, "title must be text; got int"),
        ({"title": "x" * 81}, "81 characters, at most 80"),
        ({"labels": ["a"]}, "one label per value"),
        ({"labels": [], "values": []}, "at least one"),
        ({"labels": ["a", "b", {}]}, "a label must be text; got dict"),
        ({"labels": "abc"}, "labels must be a list of at most 64 items; got str"),
        ({"values": [1, 2, "3"]}, "a bar must be a number; got str"),
        ({"values": [1, 2, True]}, "a bar must be a number; got bool"),
        ({"values": [1, 2, math.inf]}, "must lie within 1e"),
        ({"values": [1, 2, -1e31]}, "must lie within 1e"),
        ({"values": [1, 2, 10**400]}, "must lie within 1e"),
        ({"values": [1] * (MAX_BARS + 1)}, "at most 64 items; got 65 items"),
        ({"log": "yes"}, "log must be true or false"),
    ],
)
def test_hostile_bars_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        check_figure(BARS | change)
    with pytest.raises(ValueError, match=said):
        figure_html(BARS | change)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "a figure is a dict; got NoneType"),
        ([BARS], "a figure is a dict; got list"),
        ({}, "kind is one of"),
        (LINES | {"series": []}, "at least one series"),
        (LINES | {"series": ["x"]}, "a series is a dict; got str"),
        (LINES | {"series": [{"name": "a", "x": [1], "y": []}]}, "as many x as y"),
        (LINES | {"series": [{"name": "a", "x": [0] * 5000, "y": [0] * 5000}]}, "at most 4,096"),
        (LINES | {"series": LINES["series"] * 7}, "at most 12"),
        (LINES | {"floor": "low"}, "floor must be a number"),
        (HEAT | {"panels": HEAT["panels"] * 17}, "at most 32 items; got 34"),
        (HEAT | {"panels": []}, "at least one panel"),
        (HEAT | {"panels": [{"title": "", "rows": [[1, 2], [3]]}]}, "equally long"),
        (HEAT | {"panels": [{"title": "", "rows": [[]]}]}, "equally long"),
        (HEAT | {"panels": [{"title": "", "rows": [[0] * 65]}]}, "at most 64 numbers"),
        (HEAT | {"panels": [{"title": "", "rows": [[0]] * 65}]}, "at most 64 items"),
        (HEAT | {"panels": [{"title": "", "rows": [["0"]]}]}, "a cell must be a number"),
        (HEAT | {"panels": [{"title": "", "rows": {"0": [1]}}]}, "rows must be a list"),
        (HEAT | {"x_ticks": [1, 2]}, "a tick must be text"),
    ],
)
def test_other_hostile_figures_are_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        check_figure(spec)


def test_unknown_keys_do_not_pass():
    assert set(check_figure(BARS | {"onclick": "x"})) == {"kind", "title", "labels", "values", "y_label", "log"}


def test_text_stays_text():
    """Broken mathematics would raise, and markup would be markup, if anything read them as such."""
    evil = r'$\frac{$ <img src=x onerror="alert(1)"> & \b'
    for spec in (BARS | {"labels": [evil, "_b", "$c$"], "y_label": evil}, HEAT | {"x_label": evil}):
        drawn = svg_text(spec | {"title": evil})
        assert r"$\frac{$" in drawn
    lines = LINES | {"series": [{"name": "_$x$", "x": [1], "y": [1]}, {"name": evil, "x": [1], "y": [2]}]}
    assert "$x$" in svg_text(lines)
    html = figure_html(BARS | {"title": evil})
    assert html.count("<") == 1
    assert html.count(">") == 1
    assert "onerror=&quot;" in html


def test_control_characters_are_stripped():
    assert clean_text("a\x00b\x1b[31m\u202ec\ud800\nd") == "ab[31mcd"
    assert clean_text("a\nb", lines=True) == "a\nb"
    assert check_figure(BARS | {"title": "a\r\nb\x07"})["title"] == "ab"
    assert "?" in svg_text(BARS | {"title": "no glyph: \U0001f9ff"})


def test_gaps_and_logarithms_are_drawn():
    nothing = LINES | {"series": [{"name": "", "x": [1, None], "y": [None, math.nan]}], "floor": None}
    for spec in (
        BARS | {"values": [None, None, None]},
        BARS | {"values": [0, -1, None], "log": True},
        BARS | {"values": [1e-20, 1.0, 1e20], "log": True},
        LINES | {"log_x": True, "log_y": True},
        nothing,
        nothing | {"log_y": True},
        HEAT | {"panels": [{"title": "", "rows": [[None]]}]},
        HEAT | {"panels": [{"title": "", "rows": [[7.0]]}], "low": 3, "high": 3},
        HEAT | {"panels": [{"title": "", "rows": [[1e30, -1e30]]}]},
        BARS | {"values": [1e30, -1e30, 0]},
    ):
        png_size(draw(spec))


def test_many_long_labels_lie_on_their_side():
    many = BARS | {"labels": [f"transformer.h.{i}.attn.c_proj.weight" for i in range(60)], "values": [1.0] * 60}
    width, height = png_size(draw(many))
    assert height > width
    assert "transformer.h.59.attn.c_proj.weight" in svg_text(many)


def test_bars_of_many_long_names_are_valid():
    names = [f"transformer.layers.{i}.feed_forward.network.projection_out.linear.weight" for i in range(100)]
    spec = check_figure(bars("Sizes", dict.fromkeys(names, 1.0), "size"))
    assert len(spec["labels"]) == 50
    assert max(map(len, spec["labels"])) <= 60
    assert spec["labels"][1] == "….layers.2.feed_forward.network.projection_out.linear.weight"
    assert len(bars("Sizes", {"x" * 100: 1.0}, "size")["labels"][0]) == 60


def test_bars_begin_at_zero_unless_they_span_decades():
    """Cut off at the bottom, 0.66 beside 0.74 would look like a tenth of it."""
    near, far = (svg_text(BARS | {"values": [1.0, high, None], "log": True}) for high in (1.1, 1e4))
    assert "0" in [word.strip() for word in near.splitlines()]
    assert "0" not in [word.strip() for word in far.splitlines()]


def test_one_map_is_no_wider_than_it_needs():
    one, _ = png_size(draw(HEAT | {"panels": HEAT["panels"][:1]}))
    row, _ = png_size(draw(BARS))
    assert one < row
    assert f'width="{one / DPI * 96:.0f}"' in figure_html(HEAT | {"panels": HEAT["panels"][:1]})


def test_the_largest_grid_is_drawn():
    rows = [[(row * column) % 7 / 7 for column in range(64)] for row in range(64)]
    _, height = png_size(draw(HEAT | {"panels": [{"title": f"L{i}", "rows": rows} for i in range(32)]}))
    assert height < 2000


def test_a_picture_leaves_no_figure_behind():
    """pyplot keeps every figure until it is closed; here there is none to keep."""
    import sys

    draw(BARS)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    with pytest.raises(ValueError, match="png or svg; got 'gif'"):
        draw(BARS, "gif")


def test_what_is_shown_is_also_said():
    assert describe(BARS) == "Ranks: a 1, b 2.5, c none"
    assert describe(LINES) == "Loss: one from 3 to 1; two no values"
    assert describe(HEAT) == "Maps: L0 H0, L0 H1"
