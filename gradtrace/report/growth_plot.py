"""How support and what is confirmed grew, one small picture a parameter."""

from __future__ import annotations

import math

from gradtrace.evidence.growth import Growth
from gradtrace.report.figure import COLOURS, new_figure, plain, to_png, verbatim

__all__ = ["growth_plot"]

COLUMNS, MOST = 4, 48


def growth_plot(growth: Growth) -> bytes:
    """Share supported and share confirmed over the steps, on equal axes for all parameters; a PNG.

    Of more than 48 parameters the largest are shown.
    """
    names = sorted(growth.sizes, key=lambda name: -growth.sizes[name])[:MOST]
    names = [name for name in growth.sizes if name in names]
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(2.4 + 1.9 * columns, 1.0 + 1.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid, names, strict=False):
        axes.plot(growth.steps, growth.supported[name], color=COLOURS[0], marker="o", markersize=3)
        # Not known yet is a gap in the line, not zero.
        known = [math.nan if share is None else share for share in growth.confirmed[name]]
        axes.plot(growth.steps, known, color=COLOURS[1], marker="s", markersize=3, linestyle="--")
        axes.set_title(verbatim(name), fontsize=9)
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        plain(axes)
    first = grid[0]
    labels = ("supported so far", f"drift confirmed so far (q = {growth.q:g})")
    figure.legend(first.get_lines(), labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.supylabel("share of the weights", fontsize=9)
    return to_png(figure)
