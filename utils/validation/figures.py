"""Draws the figures of checks: plain data in, one picture out. Trusts nothing in the data; knows no model.

A figure comes from the process that ran a stranger's model, so `check_figure` reads it as untrusted: every type, size
and number is checked, and text is only ever text, neither HTML nor mathematics. Pictures carry their own white card,
so they read the same on light and dark pages. Needs matplotlib, imported when something is drawn, and never its
`pyplot`, whose figures are global.
"""

import base64
import io
import math
import unicodedata
from collections.abc import Callable
from html import escape
from typing import Any

MAX_TEXT = 80  # characters of any title, label or name
MAX_BARS, MAX_SERIES, MAX_POINTS = 64, 12, 4096
MAX_PANELS, MAX_SIDE = 32, 64
LARGEST = 1e30  # beyond it, an axis's own arithmetic overflows

# Okabe & Ito 2008, told apart with any kind of colour vision; without its yellow, which white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#24292f", "#d0d7de"
SMALL, TEXT, TITLE = 8, 9, 10  # font sizes, points
WIDTH, HEIGHT, DPI = 6.2, 2.3, 130  # inches, dots per inch


def bars(title: str, values: dict[str, float], y_label: str, log: bool = False) -> dict[str, Any]:
    """The data of a bar for every name; where there are too many, of every second or third."""
    shown = list(values.items())[:: max(1, -(-len(values) // MAX_BARS))]
    labels = [_tail(name) for name, _ in shown]
    return {"kind": "bars", "title": title, "labels": labels, "values": [value for _, value in shown],
            "y_label": y_label, "log": log}  # fmt: skip


def _tail(name: str, most: int = 60) -> str:
    """As many of the last parts of a dotted name as fit."""
    while len(name) > most and "." in name.lstrip("…."):
        name = "…." + name.lstrip("….").split(".", 1)[1]
    return name[-most:]


def check_figure(spec: Any) -> dict[str, Any]:
    """A clean copy of a figure's data that can be drawn.

    Args:
        spec: {"kind": "bars" | "lines" | "heatmaps", ...} as JSON gives it. NaN and None are gaps.

    Raises:
        ValueError: anything is of another type, too long, too many, infinite or missing.
    """
    if not isinstance(spec, dict):
        raise ValueError(f"a figure is a dict; got {type(spec).__name__}")
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in CHECKERS:
        raise ValueError(f"a figure's kind is one of {', '.join(CHECKERS)}; got {str(kind)[:MAX_TEXT]!r}")
    return {"kind": kind, "title": _text(spec, "title")} | CHECKERS[kind](spec)


def _check_bars(spec: dict) -> dict[str, Any]:
    labels = [clean_text(label, "a label") for label in _list(spec, "labels", MAX_BARS)]
    values = [_number(value, "a bar") for value in _list(spec, "values", MAX_BARS)]
    if len(labels) != len(values) or not labels:
        raise ValueError(f"bars need one label per value, at least one; got {len(labels)} and {len(values)}")
    return {"labels": labels, "values": values, "y_label": _text(spec, "y_label"), "log": _flag(spec, "log")}


def _check_lines(spec: dict) -> dict[str, Any]:
    series = []
    for one in _list(spec, "series", MAX_SERIES):
        if not isinstance(one, dict):
            raise ValueError(f"a series is a dict; got {type(one).__name__}")
        x = [_number(value, "x") for value in _list(one, "x", MAX_POINTS)]
        y = [_number(value, "y") for value in _list(one, "y", MAX_POINTS)]
        if len(x) != len(y):
            raise ValueError(f"a series needs as many x as y; got {len(x)} and {len(y)}")
        series.append({"name": _text(one, "name"), "x": x, "y": y})
    if not series:
        raise ValueError("lines need at least one series")
    flags = {"log_x": _flag(spec, "log_x"), "log_y": _flag(spec, "log_y")}
    return {"series": series, "floor": _number(spec.get("floor"), "floor"), **_axes(spec), **flags}


def _check_heatmaps(spec: dict) -> dict[str, Any]:
    panels = []
    for panel in _list(spec, "panels", MAX_PANELS):
        if not isinstance(panel, dict):
            raise ValueError(f"a panel is a dict; got {type(panel).__name__}")
        rows = []
        for row in _list(panel, "rows", MAX_SIDE):
            if not isinstance(row, list) or len(row) > MAX_SIDE:
                raise ValueError(f"a row is a list of at most {MAX_SIDE} numbers")
            rows.append([_number(value, "a cell") for value in row])
        if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("a panel's rows must be equally long, and there must be some")
        panels.append({"title": _text(panel, "title"), "rows": rows})
    if not panels:
        raise ValueError("heatmaps need at least one panel")
    ticks = {}
    for name in ("x_ticks", "y_ticks"):
        given = _list(spec, name, MAX_SIDE) if spec.get(name) is not None else []
        ticks[name] = [clean_text(tick, "a tick") for tick in given]
    low, high = _number(spec.get("low"), "low"), _number(spec.get("high"), "high")
    return {"panels": panels, **_axes(spec), **ticks, "low": low, "high": high}


CHECKERS: dict[str, Callable] = {"bars": _check_bars, "lines": _check_lines, "heatmaps": _check_heatmaps}


def clean_text(value: Any, name: str = "text", most: int = MAX_TEXT, lines: bool = False) -> str:
    """Text without control, direction and surrogate characters; `lines` keeps line ends.

    Raises:
        ValueError: it is no text, or longer than `most` characters.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text; got {type(value).__name__}")
    if len(value) > most:
        raise ValueError(f"{name} has {len(value):,} characters, at most {most:,} are allowed")
    kept = "\n" if lines else ""
    return "".join(char for char in value if char in kept or unicodedata.category(char)[0] != "C")


def _text(spec: dict, name: str) -> str:
    return clean_text(spec.get(name, ""), name)


def _axes(spec: dict) -> dict[str, str]:
    return {name: _text(spec, name) for name in ("x_label", "y_label")}


def _flag(spec: dict, name: str) -> bool:
    value = spec.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false; got {type(value).__name__}")
    return value


def _list(spec: dict, name: str, most: int) -> list:
    value = spec.get(name)
    if not isinstance(value, list) or len(value) > most:
        found = f"{len(value):,} items" if isinstance(value, list) else type(value).__name__
        raise ValueError(f"{name} must be a list of at most {most:,} items; got {found}")
    return value


def _number(value: Any, name: str) -> float | None:
    """A finite float of moderate size; None for a gap."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number; got {type(value).__name__}")
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} must lie within {LARGEST:.0e}; it is larger")
    return float(value)


def figure_html(spec: Any) -> str:
    """The figure as one <img> whose picture is inside, with its content in words for who cannot see it.

    Raises:
        ValueError: as `check_figure`.
    """
    spec = check_figure(spec)
    png = draw(spec)
    inches, picture = int.from_bytes(png[16:20]) / DPI, base64.b64encode(png).decode()  # its header says how wide
    style = "max-width:100%;height:auto;border-radius:6px;display:block"
    size = f'width="{inches * 96:.0f}" style="{style}"'
    return f'<img {size} alt="{escape(describe(spec))}" src="data:image/png;base64,{picture}" />'


def describe(spec: Any) -> str:
    """What a figure shows, in a sentence."""
    spec = check_figure(spec)
    if spec["kind"] == "bars":
        pairs = zip(spec["labels"], spec["values"], strict=True)
        shown = ", ".join(f"{label} {'none' if value is None else f'{value:.3g}'}" for label, value in pairs)
    elif spec["kind"] == "lines":
        shown = "; ".join(_line_in_words(one) for one in spec["series"])
    else:
        shown = ", ".join(panel["title"] for panel in spec["panels"])
    return f"{spec['title']}: {shown}"[:1000]


def _line_in_words(series: dict) -> str:
    known = [value for value in series["y"] if value is not None]
    span = f"from {known[0]:.3g} to {known[-1]:.3g}" if known else "no values"
    return f"{series['name']} {span}"


def draw(spec: Any, file_type: str = "png") -> bytes:
    """A figure's picture as the bytes of a file, "png" or "svg".

    Raises:
        ValueError: as `check_figure`, or for another file type.  ImportError: matplotlib is missing.
    """
    spec = check_figure(spec)
    if file_type not in ("png", "svg"):
        raise ValueError(f"file_type must be png or svg; got {file_type!r}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    {"bars": _draw_bars, "lines": _draw_lines, "heatmaps": _draw_heatmaps}[spec["kind"]](figure, spec)
    figure.suptitle(_drawable(spec["title"]), fontsize=TITLE, color=INK, x=0.01, ha="left", fontweight="bold")
    for text in figure.findobj(Text):  # a person's own matplotlib settings may say otherwise
        text.set_parse_math(False)
        text.set_usetex(False)
        text.set_fontfamily("DejaVu Sans")
    file = io.BytesIO()
    figure.savefig(file, format=file_type, facecolor="white")
    return file.getvalue()


def _draw_bars(figure: Any, spec: dict) -> None:
    labels = [_drawable(label) for label in spec["labels"]]
    values = [math.nan if value is None else value for value in spec["values"]]
    longest, count = max(map(len, labels)), len(labels)
    sideways = count > 40 or count * longest > 70
    if sideways:
        figure.set_size_inches(WIDTH, 0.8 + 0.19 * max(count, 3))
    ax = _plot(figure)
    places = range(count)
    positive = [value for value in values if value > 0]
    # A bar is read by its length: on a logarithmic axis that means something over decades only.
    log = spec["log"] and bool(positive) and max(positive) > 30 * min(positive)
    (ax.barh if sideways else ax.bar)(places, values, color=COLOURS[0], log=log)
    main, other = (ax.xaxis, ax.yaxis) if sideways else (ax.yaxis, ax.xaxis)
    other.set_ticks(places, labels, fontsize=SMALL if count <= 40 else SMALL - 1)
    other.set_tick_params(length=0)
    main.set_label_text(_drawable(spec["y_label"]), fontsize=TEXT, color=INK)
    main.grid(color=FAINT, linewidth=0.6)
    _numbers(main, log)
    (ax.set_ylim if sideways else ax.set_xlim)((count - 0.4, -0.6) if sideways else (-0.6, count - 0.4))
    if count > 12 and not sideways:
        return
    for place, value in zip(places, values, strict=True):  # the number itself, beyond the end of its bar
        if math.isnan(value):
            continue
        at = (value, place) if sideways else (place, value)
        sign = -1 if value < 0 else 1
        shift = (3 * sign, 0) if sideways else (0, 2 * sign)
        align = {"va": "center", "ha": "left" if sign > 0 else "right"} if sideways else {
            "ha": "center", "va": "bottom" if sign > 0 else "top"}  # fmt: skip
        ax.annotate(_short(value), at, shift, textcoords="offset points", fontsize=SMALL - 1, color=INK, **align)
    ax.margins(**{"x" if sideways else "y": 0.12})


def _draw_lines(figure: Any, spec: dict) -> None:
    ax = _plot(figure)
    handles, names = [], []
    for index, one in enumerate(spec["series"]):
        x = [math.nan if value is None else value for value in one["x"]]
        y = [math.nan if value is None else value for value in one["y"]]
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index % len(DASHES)],
            "marker": MARKERS[index % len(MARKERS)],
        }
        every = max(1, len(x) // 12)
        handles += ax.plot(x, y, linewidth=1.6, markersize=3.5, markevery=every, **style)
        names.append(one["name"])
    if spec["floor"] is not None:
        handles.append(ax.axhline(spec["floor"], color="#6e7781", linewidth=1.2, linestyle=(0, (1, 1))))
        names.append(f"floor {spec['floor']:.3g}")
    for name, axis, rescale in (("x", ax.xaxis, ax.set_xscale), ("y", ax.yaxis, ax.set_yscale)):
        log = spec[f"log_{name}"] and any((v or 0) > 0 for one in spec["series"] for v in one[name])
        if log:
            rescale("log", nonpositive="mask")
        _numbers(axis, log)
        if not log and all(value is None or value == int(value) for one in spec["series"] for value in one[name]):
            axis.get_major_locator().set_params(integer=True)
        axis.set_label_text(_drawable(spec[f"{name}_label"]), fontsize=TEXT, color=INK)
        axis.grid(color=FAINT, linewidth=0.6)
    if len(names) > 1 or names[0]:
        # A name that starts with an underscore would be left out of the legend.
        shown = [_drawable(name).lstrip("_") or "-" for name in names]
        columns = 1 if max(map(len, shown)) > 30 else min(3, len(shown))
        figure.legend(handles, shown, loc="outside lower left", fontsize=SMALL, ncols=columns, frameon=False,
                      labelcolor=INK, handlelength=3)  # fmt: skip


def _draw_heatmaps(figure: Any, spec: dict) -> None:
    panels = spec["panels"]
    columns = min(len(panels), 4 if len(panels) <= 8 else 6)
    rows = -(-len(panels) // columns)
    alike = len({(len(panel["rows"]), len(panel["rows"][0])) for panel in panels}) == 1
    shapes = [min(1.6, max(0.06, len(panel["rows"]) / len(panel["rows"][0]))) for panel in panels]
    shapes = shapes if alike else [1.0] * len(panels)
    single = len(panels) == 1
    side = min((WIDTH - 1.0) / columns, (2.4 if single else 3.2) / max(shapes))  # a panel's width, inches
    gap = 0.24 if alike else 0.4
    wide = max(4.6, columns * side + 1.0)  # narrower than WIDTH where few panels need no more; a title needs some
    figure.set_size_inches(wide, max(1.7, min(14.0, rows * (side * max(shapes) + gap) + 0.8)))
    figure.get_layout_engine().set(h_pad=0.02, w_pad=0.02, hspace=0.01, wspace=0.01)
    known = [value for panel in panels for row in panel["rows"] for value in row if value is not None]
    low = spec["low"] if spec["low"] is not None else min(known, default=0.0)
    high = spec["high"] if spec["high"] is not None else max(known, default=1.0)
    high = high if high > low else low + (abs(low) or 1.0)
    axes = figure.subplots(rows, columns, squeeze=False)
    image = None
    for index, ax in enumerate(axes.flat):
        if index >= len(panels):
            ax.set_axis_off()
            continue
        cells = [[math.nan if value is None else value for value in row] for row in panels[index]["rows"]]
        image = ax.imshow(cells, cmap="viridis", vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        ax.set_facecolor("#bbbbbb")  # of gaps, which are not zeros
        if not single:  # one alone fills its picture
            ax.set_box_aspect(shapes[index])
        fits, title = 108 // columns, _drawable(panels[index]["title"])
        title = title if len(title) <= fits else f"{title[: fits - 1]}…"
        ax.set_title(title, fontsize=SMALL - (columns > 4), color=INK, pad=3)
        for axis, name, size in ((ax.xaxis, "x_ticks", len(cells[0])), (ax.yaxis, "y_ticks", len(cells))):
            edge = index % columns == 0 if name == "y_ticks" else index + columns >= len(panels)
            _ticks(axis, spec[name], size, dense=columns <= 2, named=edge or not alike)
        ax.tick_params(labelsize=SMALL - 2 if columns > 2 else SMALL - 1, colors=INK, length=2, pad=2)
        for spine in ax.spines.values():
            spine.set_color(FAINT)
    x_label, y_label = _drawable(spec["x_label"]), _drawable(spec["y_label"])
    if single:  # beside the panel, not at the edge of the picture
        axes[0, 0].set_xlabel(x_label, fontsize=TEXT, color=INK)
        axes[0, 0].set_ylabel(y_label, fontsize=TEXT, color=INK)
    else:
        figure.supxlabel(x_label, fontsize=TEXT, color=INK)
        figure.supylabel(y_label, fontsize=TEXT, color=INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, aspect=30)
    bar.outline.set_edgecolor(FAINT)
    bar.ax.tick_params(labelsize=SMALL - 1, colors=INK, length=2)
    _numbers(bar.ax.yaxis, log=False)


def _ticks(axis: Any, names: list[str], size: int, dense: bool, named: bool) -> None:
    """A few ticks: names where they are given and fit, positions otherwise; nothing inside a grid of equals."""
    most = 4 if not dense else 8 if axis.axis_name == "x" else 16  # names side by side need more room
    step = max(1, -(-size // most))
    places = list(range(0, size, step))
    labels = [_drawable(names[place])[:12] for place in places] if len(names) == size else map(str, places)
    axis.set_ticks(places, list(labels) if named else [""] * len(places))


def _plot(figure: Any) -> Any:
    ax = figure.subplots()
    ax.set_facecolor("white")
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=SMALL, colors=INK, which="both")
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    return ax


def _numbers(axis: Any, log: bool) -> None:
    """Ticks as plain short numbers; the usual labels of a log axis are mathematics, which is off here."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_formatter(NullFormatter())
    if log:
        low, high = axis.get_view_interval()
        narrow = low > 0 and high / low < 100  # two decades or less need more than the powers of ten
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))


def _short(value: float) -> str:
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _drawable(text: str) -> str:
    """Text with a question mark for every character that the font of the pictures lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(char if font.get_char_index(ord(char)) else "?" for char in text)
