"""What all plots share: colours, Matplotlib's settings, figures to bytes.

Matplotlib's settings belong to the process, so one figure is drawn at a time; pyplot, which keeps figures, is not
used. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
Format = Literal["svg", "png"]
MEDIA_TYPES: dict[Format, str] = {"svg": "image/svg+xml", "png": "image/png"}

Draw = Callable[[Theme], "Figure"]
Tables = Callable[[str], pl.DataFrame]
"""Reads a table of the artifact, by its name."""


@dataclass(frozen=True)
class Plot:
    """A plot that artifacts of a sort have, a selector's mixtures for instance.

    ``prepare``, which is given the manifest, does what is the same in both themes.
    """

    name: str
    title: str
    caption: str
    prepare: Callable[[Any, Tables], Draw]


WIDTH = 7.2
"""Inches; 100 pixels each on a page."""

_PNG_DPI = 200
_DRAWING = threading.Lock()


@dataclass(frozen=True)
class Colours:
    """Of one theme. ``categories`` stay apart in normal vision, protanopia, deuteranopia and tritanopia."""

    ink: str
    soft: str
    line: str
    paper: str
    bar: str
    second: str
    categories: tuple[str, ...]


COLOURS: dict[Theme, Colours] = {
    "light": Colours(
        ink="#1c1f24",
        soft="#59616b",
        line="#dcdfe4",
        paper="#ffffff",
        bar="#3b76c4",
        second="#d0741f",
        categories=("#2836af", "#e4762c", "#9c6997", "#b71c0e", "#7c7bff", "#79004e"),
    ),
    "dark": Colours(
        ink="#e7e9ec",
        soft="#a3abb5",
        line="#343a42",
        paper="#15181c",
        bar="#7fa8ed",
        second="#e39a4f",
        categories=("#7fa8ed", "#d49b56", "#63fdf4", "#bb3f5c", "#eaeb2b", "#7454d6"),
    ),
}
MARKERS = ("o", "s", "^", "D", "v")
"""With as many colours as a theme has, enough signs for 30 groups."""


@contextmanager
def drawing(theme: Theme) -> Iterator[Colours]:
    """Matplotlib's settings while a figure of the theme is made, in this thread alone."""
    import matplotlib as mpl

    colours = COLOURS[theme]
    settings = {
        "font.family": "sans-serif",
        # Matplotlib's own font measures the text; a browser without it takes its own, which is narrower.
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": colours.line,
        "axes.facecolor": colours.paper,
        "figure.facecolor": colours.paper,
        "grid.color": colours.line,
        "legend.frameon": False,
        "text.parse_math": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "ytick.labelcolor"), colours.ink),
        **dict.fromkeys(("xtick.color", "xtick.labelcolor", "ytick.color"), colours.soft),
        "ytick.major.size": 0,
    }
    with _DRAWING, mpl.rc_context(settings):
        yield colours


def new_figure(height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure of the common width; ``height`` in inches. Without layout its axes stay where they are put."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout=layout)


def figure_bytes(figure: Figure, format: Format) -> bytes:
    """The figure as a file; in SVG text stays text."""
    import matplotlib as mpl

    sink = io.BytesIO()
    with (
        _DRAWING,
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mixwright"}),
        _missing_glyphs_allowed(),
    ):
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(sink, format=format, dpi=_PNG_DPI, metadata=metadata)
    return sink.getvalue()


@contextmanager
def _missing_glyphs_allowed() -> Iterator[None]:
    """Letters that the font lacks become boxes in a PNG (a browser finds them for an SVG): no matter of a log."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
