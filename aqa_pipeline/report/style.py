"""Style of figures, and the way from a figure to SVG text inside a page.

Conventions
-----------
Width
    Every figure is :data:`WIDTH` user units wide and is meant to be shown about that many
    pixels wide, on a telephone as on a desk; the page scales it.
Text
    Stays text: the page's font draws it, and it can be searched and read aloud. Each
    figure says in ``aria-label`` what it shows.
Colours
    Ink, lines and the main data colour become CSS variables with the light colour as
    fallback, so that a page can turn dark; the other data colours are legible on both.
key
    Names the figure within its page. All ids carry it: ids are global to a page, and a
    clip path that belongs to a hidden figure would hide another one's data.

Equal figures give equal text.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

T = TypeVar("T")

WIDTH, HEIGHT = 380, 270
INK, MUTED, GRID = "#1b2733", "#5d6b78", "#dde3e8"
#: Okabe and Ito's colours, told apart by colour-blind readers too; then dashed, dotted, ...
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98300", "#56b4e9")
_STYLES = list(product(("-", "--", ":", "-."), _SERIES))
BLUE, ORANGE = _SERIES[:2]
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", BLUE: "--data"}
_NAME_LENGTH = 26

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"

STYLE: Any = {  # matplotlib's stubs want literal keys
    "svg.fonttype": "none",
    "svg.hashsalt": "aqa",
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "text.parse_math": False,  # a clip named "$x$" is not a formula
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


@contextmanager
def styled_figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    """One set of axes in this style, :data:`WIDTH` by ``height`` user units.

    The figure must be turned into text inside the block: half of the style counts then.
    """
    with matplotlib.rc_context(STYLE):
        # One inch of matplotlib's SVG is 72 user units.
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        yield figure, figure.subplots()


def with_styles(curves: Mapping[str, T]) -> Iterator[tuple[str, T, dict[str, Any]]]:
    """Name, data, and colour, line style and label of each of several curves."""
    for i, (name, data) in enumerate(curves.items()):
        line, colour = _STYLES[i % len(_STYLES)]
        yield name, data, {"color": colour, "linestyle": line, "label": shortened(name)}


def shortened(name: str) -> str:
    """A name that fits; what is cut is its middle, for both ends tell runs apart."""
    if len(name) <= _NAME_LENGTH:
        return name
    return f"{name[: _NAME_LENGTH // 2]}…{name[-(_NAME_LENGTH // 2 - 1) :]}"


def svg_text(figure: Figure, alt: str, key: str) -> str:
    """The figure as an ``svg`` element for a page; ``alt`` says in words what it shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    for prefix, address in (("", _SVG), ("xlink", _XLINK)):
        ET.register_namespace(prefix, address)
    root = ET.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            # Metadata are of no use in a page; a style element would restyle all of it.
            if child.tag.rsplit("}", 1)[-1] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        _adapt(element.attrib, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG picture on white, for slides and mails; twice as fine as on a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _adapt(attributes: dict[str, str], key: str) -> None:
    """Prefix ids and references to them with the key; turn the style's colours into variables."""
    href = f"{{{_XLINK}}}href"
    if "id" in attributes:
        attributes["id"] = f"{key}-{attributes['id']}"
    if attributes.get(href, "").startswith("#"):
        attributes[href] = f"#{key}-{attributes[href][1:]}"
    for name, value in attributes.items():
        if "url(#" in value:
            attributes[name] = value.replace("url(#", f"url(#{key}-")
    style = attributes.get("style", "")
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, f"var({variable}, {colour})")
    if style:
        attributes["style"] = style
