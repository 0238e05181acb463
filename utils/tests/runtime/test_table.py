"""Tables are aligned as text, escaped as HTML; numbers and times can be read."""

import pytest

from utils.runtime.table import Table, count, duration, escape


def test_columns_are_aligned_and_lines_have_no_tail():
    table = Table([("a", "1", "x"), ("long name", "22", "")], header=("name", "n", "note"), title="Runs", note="two")
    assert str(table).split("\n") == ["Runs", "", "name       n   note", "a          1   x", "long name  22", "two"]
    assert repr(table) == str(table)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (Table([("a", "b")]), "a  b"),
        (Table([], header=("a", "b")), "a  b"),
        (Table([]), ""),
        (Table([], note="nothing yet"), "nothing yet"),
        (Table([("a", 12), ("b", None)]), "a  12\nb  None"),
    ],
)
def test_small_tables(table, text):
    assert str(table) == text


def test_rows_of_different_length_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        str(Table([("a", "b"), ("c",)]))


def test_html_is_escaped_everywhere():
    nasty = "<script>\"&'</script>"
    html = Table([(nasty, 1)], header=(nasty, "n"), title=nasty, note=nasty)._repr_html_()
    assert "<script>" not in html
    assert html.count("&lt;script&gt;&quot;&amp;&#x27;&lt;/script&gt;") == 4


def test_html_holds_every_cell_in_its_row():
    html = Table([("a", "b"), ("c", "d")], header=("x", "y"))._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") == 3
    assert html.count("<th ") == html.count("</th>") == 2
    assert html.count("<td ") == html.count("</td>") == 4
    assert [html.index(f">{cell}<") for cell in "xyabcd"] == sorted(html.index(f">{cell}<") for cell in "xyabcd")


def test_html_without_header_title_and_note_is_the_table_alone():
    html = Table([("a",)])._repr_html_()
    assert html.startswith("<table")
    assert html.endswith("</table>")
    assert "<th" not in html


def test_line_ends_are_kept_in_html():
    assert escape("a\n<b>") == "a<br>&lt;b&gt;"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1k"),
        (1234, "1.23k"),
        (12_345, "12.3k"),
        (999_000, "999k"),
        (1_234_567, "1.23M"),
        (124_000_000, "124M"),
        (2.5e9, "2.5G"),
        (3e12, "3T"),
        (-1500, "-1.5k"),
        (0.1234, "0.123"),
    ],
)
def test_count(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999.9, "1k"), (999_999, "1M"), (999_600, "1M"), (999_999_999, "1G"), (-999_999, "-1M")]
)
def test_count_just_below_the_next_unit(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (9, "0:09"),
        (59.6, "1:00"),
        (75, "1:15"),
        (3599.7, "1:00:00"),
        (4000, "1:06:40"),
        (360_000, "100:00:00"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
