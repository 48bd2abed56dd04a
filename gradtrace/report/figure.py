"""Figures as PNG bytes: matplotlib's object API on the Agg canvas, so nothing global is touched."""

from __future__ import annotations

import warnings
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from gradtrace.report.printable import printable

__all__ = ["COLOURS", "MARKERS", "new_figure", "plain", "to_png", "verbatim"]

# Okabe and Ito's colours stay apart under common colour blindness; markers tell the lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches wide and high."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure on white, which reads on a dark page too."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is shown as boxes; the tables have it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def verbatim(name: str) -> str:
    """A label that shows `name` and nothing else, in the middle shortened where it is long."""
    # A pair of dollars would be read as mathematics, and a broken formula raises; a label of a hundred
    # letters would leave no room for the picture.
    short = name if len(name) <= 28 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}{name[-14:]}"
    return printable(short).replace("$", r"\$")


def plain(axes: Axes) -> None:
    """No box around the curves or bars: only the two axes that carry numbers."""
    axes.spines[["top", "right"]].set_visible(False)
