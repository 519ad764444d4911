"""A figure of matplotlib's as SVG that stands inside an HTML page, and how all of them look. Control context.

The page decides about colours and fonts: a figure is drawn in stand-ins, which become the page's CSS variables here, so
that one drawing serves light and dark. Nothing in it needs a script: what a mark means is its `<title>`, which a
browser shows while the pointer rests there. Text stays text. Only `virtblk bench --report` imports matplotlib, an extra
(`virtblk[report]`).
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

#: Inches. A page shows a figure at most as wide as its text, where one of these points is somewhat more than a pixel.
WIDTH: Final = 11.0

#: Stand-ins for colours, and the CSS variable that each becomes.
INK: Final = "#010101"
MUTED: Final = "#020202"
GRID: Final = "#030303"
SURFACE: Final = "#040404"
DRIVER: Final = "#050505"
DEVICE: Final = "#060606"
_PATHS: Final = {"request": "#110000", "bio": "#120000", "mq": "#130000", "auto": "#140000"}
VARIABLES: Final = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    DRIVER: "--driver",
    DEVICE: "--device",
} | {colour: f"--{path}" for path, colour in _PATHS.items()}
#: What tells paths apart besides their colour.
MARKERS: Final = {"request": "s", "bio": "o", "mq": "D", "auto": "^"}
DASHES: Final[dict[str, Any]] = {"request": "-", "bio": "--", "mq": "-.", "auto": ":"}

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "virtblk",
    "path.simplify": True,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
}

_SVG: Final = "http://www.w3.org/2000/svg"
_NUMBER: Final = re.compile(r"-?\d+\.\d{3,}")
_XLINK: Final = "{http://www.w3.org/1999/xlink}href"
#: What inherits from the root, in place of matplotlib's style sheet for `*`, which would be the whole page's.
_ROOT_STYLE: Final = "stroke-linejoin: round; stroke-linecap: butt"


#: Decorates what draws: matplotlib asks for its settings whenever something is made.
styled = mpl.rc_context(_STYLE)


def path_colour(path: str) -> str:
    """The stand-in for a path's colour."""
    return _PATHS.get(path, INK)


class Drawing:
    """One figure, `height` inches high. Made, drawn on and written in a function that is `styled`."""

    def __init__(self, height: float, width: float = WIDTH) -> None:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
        self._titles: dict[str, str] = {}
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def grid(self, rows: int, columns: int, **given: Any) -> list[list[Axes]]:
        """Axes in rows and columns; `given` as for Figure.subplots, the margins in inches."""
        margins = {"left": 0.8, "right": 0.15, "top": 0.35, "bottom": 0.45} | given.pop("margins", {})
        spaces = given.pop("spaces", {})
        fractions = {
            "left": margins["left"] / self.width,
            "right": 1 - margins["right"] / self.width,
            "top": 1 - margins["top"] / self.height,
            "bottom": margins["bottom"] / self.height,
        }
        axes = self.figure.subplots(rows, columns, squeeze=False, gridspec_kw=fractions | spaces, **given)
        return [list(row) for row in axes]

    def tell(self, artist: Any, text: str) -> None:
        """What a browser shows while the pointer rests on `artist`."""
        name = f"told-{len(self._titles)}"
        artist.set_gid(name)
        self._titles[name] = text

    def svg(self, name: str, label: str) -> str:
        """The element. `name` makes its ids its own within a page, `label` is read in place of the picture."""
        stream = io.StringIO()
        FigureCanvasSVG(self.figure).print_svg(stream, metadata={"Date": None, "Creator": None})
        return _embeddable(stream.getvalue(), name, label, self._titles)


def _embeddable(text: str, name: str, label: str, titles: Mapping[str, str]) -> str:
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text)
    for tag in ("metadata", "defs"):
        for child in root.findall(f"{{{_SVG}}}{tag}"):
            if tag == "metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    for element in root.iter():
        if (found := titles.get(element.get("id", ""))) is not None:
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = found
            element.insert(0, title)
        _rename(element, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", _ROOT_STYLE)
    return ElementTree.tostring(root, encoding="unicode")


def _rename(element: ElementTree.Element, name: str) -> None:
    """Ids of the page's own, references to them, and colours as variables."""
    if _XLINK in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(_XLINK).removeprefix('#')}")
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == "d":  # to a hundredth of a point, and not to a millionth
            element.set(key, _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value))
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif "#" in value and key in ("style", "fill", "stroke"):
            for colour, variable in VARIABLES.items():
                value = value.replace(colour, f"var({variable})")
            element.set(key, value)


# Scales.


def tick_duration(nanoseconds: float, position: object = None) -> str:
    """`1 us`, `250 us`, `10 ms`: for an axis, where figures are round."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= factor * 0.9995:
            return f"{nanoseconds / factor:.4g} {unit}"
    return f"{nanoseconds:.4g} ns" if nanoseconds else "0"


def tick_count(value: float, position: object = None) -> str:
    """`250k`, `1.5M`: likewise."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def tick_percent(value: float, position: object = None) -> str:
    """`+5 %`."""
    return f"{value:+.4g} %" if value else "0"


def linear(axis: Any, text: Any, most: int = 5) -> None:
    """A linear axis with a few round figures, written by `text`."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(text))


def logarithmic(axis: Any, low: float, high: float) -> None:
    """A logarithmic axis of latencies from `low` to `high`: a figure per decade, and two more if these are few."""
    within = (1.0,) if high / low > 3000 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(10, subs=within, numticks=30))
    axis.set_major_formatter(FuncFormatter(tick_duration))
    axis.set_minor_locator(NullLocator())
