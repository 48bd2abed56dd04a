"""What each criterion's masks are worth, over density."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from gradtrace.evidence.criterion import criteria
from gradtrace.evidence.curves import Curves
from gradtrace.report.figure import COLOURS, MARKERS, new_figure, plain, to_png, verbatim

__all__ = ["draw_quality", "quality_plot"]

CONTROL = "#8a8a8a"


def quality_plot(curves: Curves, *, ylabel: str = "quality") -> bytes:
    """Median per criterion over density, with a band from the lowest to the highest run; a PNG."""
    figure = new_figure(5.8, 4.0)
    axes = figure.add_subplot()
    draw_quality(axes, curves, ylabel=ylabel)
    return to_png(figure)


def draw_quality(axes: Axes, curves: Curves, *, ylabel: str = "quality") -> None:
    """The same on axes that are there; controls are grey and dashed, equal criteria share one line."""
    order = np.argsort(curves.densities)
    x = np.asarray(curves.densities)[order]
    controls = {criterion.name for criterion in criteria() if criterion.kind == "control"}
    places = {name: k for k, name in enumerate(curves.values)}
    for name, equals in _lines(curves).items():
        low, middle, high = np.asarray(curves.spread(name))[order].T
        k, control = places[name], name in controls
        colour = CONTROL if control else COLOURS[k % len(COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            x,
            middle,
            color=colour,
            linestyle="--" if control else "-",
            marker=MARKERS[(k + k // len(COLOURS)) % len(MARKERS)],  # no colour with the same marker twice
            markersize=5,
            label=" = ".join(verbatim(equal) for equal in equals),
        )
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{d:g}" for d in x])
    axes.minorticks_off()
    axes.set_xlabel("density: share of the weights kept")
    axes.set_ylabel(verbatim(ylabel))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    plain(axes)


def _lines(curves: Curves) -> dict[str, list[str]]:
    # Criteria that rank alike would hide one another's line, and one of them would seem to be missing.
    lines: dict[str, list[str]] = {}
    for name, values in curves.values.items():
        first = next((other for other in lines if curves.values[other] == values), name)
        lines.setdefault(first, []).append(name)
    return lines
