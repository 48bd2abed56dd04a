"""The rows of an embedding in one picture: which were never used, and how unevenly the others were."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patches import Patch

from gradtrace.evidence.undertrained import RowUse
from gradtrace.report.figure import COLOURS, new_figure, plain, to_png, verbatim

__all__ = ["undertrained_plot"]

COLUMNS = (16, 32, 64, 128, 256, 512)  # numbers in which a row of the embedding is found again by eye


def undertrained_plot(use: RowUse) -> bytes:
    """Left one cell for each row, in reading order; right the share of steps over the rows, sorted; a PNG."""
    share = use.uses / max(1, use.steps)
    columns = next((c for c in COLUMNS if c * c >= share.size), 1024)
    lines = max(1, math.ceil(share.size / columns))
    cells = np.full(lines * columns, np.nan)
    cells[: share.size] = share
    never = np.zeros(cells.shape, np.bool_)
    never[: share.size] = use.never
    figure = new_figure(9.0, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    least = 1 / max(2, use.steps)
    most = max(1.0, float(share.max(initial=1.0)))
    grid = (lines, columns)
    image = left.imshow(
        np.ma.masked_less_equal(np.ma.masked_invalid(cells), 0).reshape(grid),
        norm=LogNorm(least, most),
        cmap="Blues",
        aspect="auto",
        interpolation="nearest",
    )
    missing = np.ma.masked_equal(never.astype(np.float64), 0).reshape(grid)
    left.imshow(missing, cmap=ListedColormap([COLOURS[1]]), aspect="auto", interpolation="nearest")
    left.set_title(verbatim(use.name), fontsize=10)
    left.set_xlabel(f"row modulo {columns}", fontsize=9)
    left.set_ylabel("row / " + str(columns), fontsize=9)
    left.tick_params(labelsize=8)
    left.legend(
        handles=[
            Patch(color=COLOURS[1], label=f"never used: {int(use.never.sum()):,} of {share.size:,} rows")
        ],
        loc="lower left",
        bbox_to_anchor=(0, 1.08),
        frameon=False,
        fontsize=9,
    )
    what = "share of steps" if use.counted == "events" else "lookups a step"
    figure.colorbar(image, ax=left).set_label(what, fontsize=9)
    order = np.sort(share)[::-1]
    right.plot(np.arange(1, order.size + 1), np.where(order > 0, order, np.nan), color=COLOURS[0])
    right.axhline(use.rare, color=COLOURS[7], linestyle="--", linewidth=1)
    right.text(
        max(2, order.size), use.rare, f"below {use.rare:g}: rarely used", fontsize=8, va="bottom", ha="right"
    )
    right.set_yscale("log")
    right.set_ylim(least * 0.7, most * 1.4)
    right.set_xlim(0, max(2, order.size))
    right.set_xlabel("rows, most used first", fontsize=9)
    right.set_ylabel(what, fontsize=9)
    right.tick_params(labelsize=8)
    right.grid(alpha=0.25)
    plain(right)
    return to_png(figure)
