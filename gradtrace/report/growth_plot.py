"""How support and what is confirmed grew, and where support ended: one small picture a parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from gradtrace.evidence.growth import Growth
from gradtrace.evidence.span_shares import SpanShares
from gradtrace.report.figure import COLOURS, new_figure, plain, to_png, verbatim

__all__ = ["growth_plot"]

COLUMNS, MOST = 4, 47
TOGETHER = "all together"


def growth_plot(growth: Growth, spans: SpanShares | None = None) -> bytes:
    """Shares supported and confirmed so far over the steps, on equal axes, all weights together first; a PNG.

    With `spans`, also the share whose last event lies behind. Of more than 47 parameters the largest are
    shown.
    """
    largest = sorted(growth.sizes, key=lambda name: -growth.sizes[name])[:MOST]
    names = [name for name in growth.sizes if name in largest]
    columns = min(COLUMNS, len(names) + 1)
    rows = math.ceil((len(names) + 1) / columns)
    figure = new_figure(2.4 + 1.9 * columns, 1.0 + 1.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(names) + 1 :]:
        axes.set_visible(False)
    _draw(grid[0], growth, *growth.together(), _ended_together(spans))
    grid[0].set_title(TOGETHER, fontsize=9, fontweight="bold")
    for axes, name in zip(grid[1:], names, strict=False):
        ended = None if spans is None else _ended(spans.last[name])
        _draw(axes, growth, growth.supported[name], growth.confirmed[name], ended)
        axes.set_title(verbatim(name), fontsize=9)
    labels = ["supported so far", f"drift confirmed so far (q = {growth.q:g})", "supported for the last time"]
    lines = grid[0].get_lines()
    figure.legend(lines, labels[: len(lines)], loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.supylabel("share of the weights", fontsize=9)
    return to_png(figure)


def _draw(
    axes: Axes,
    growth: Growth,
    supported: Sequence[float],
    confirmed: Sequence[float | None],
    ended: Sequence[float] | None,
) -> None:
    axes.plot(growth.steps, supported, color=COLOURS[0], marker="o", markersize=3)
    # Not known yet is a gap in the line, not zero.
    known = [math.nan if share is None else share for share in confirmed]
    axes.plot(growth.steps, known, color=COLOURS[1], marker="s", markersize=3, linestyle="--")
    if ended is not None:
        axes.plot(growth.steps, ended, color=COLOURS[2], marker="^", markersize=3, linestyle="-.")
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylim(-0.03, 1.03)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    plain(axes)


def _ended(last: Sequence[float]) -> list[float]:
    # What had an event in the last entry would go on if training did: nothing ended there.
    return [*np.cumsum(last[:-1]).tolist(), math.nan]


def _ended_together(spans: SpanShares | None) -> list[float] | None:
    if spans is None:
        return None
    sizes = np.array(list(spans.sizes.values()), np.float64)
    last = np.array([spans.last[name] for name in spans.sizes])
    return _ended((sizes @ last / max(1.0, sizes.sum())).tolist())
