"""Whether masks fall apart: components, the largest one and the edges across the best cut, over density."""

from __future__ import annotations

import math

import numpy as np

from gradtrace.comparison.comparison import Comparison
from gradtrace.comparison.summary import decomposition
from gradtrace.report.contender_style import style
from gradtrace.report.figure import new_figure, plain, to_png, verbatim

__all__ = ["decomposition_plot"]

PANELS = (
    ("components", "components, all layers"),
    ("largest", "edges in each layer's largest"),
    ("across", "edges across the best cut"),
)


def decomposition_plot(comparison: Comparison) -> bytes:
    """Three panels over density, one line a contender; a PNG."""
    order = np.argsort(comparison.densities)
    x = np.asarray(comparison.densities)[order]
    figure = new_figure(9.2, 3.9)
    panels = figure.subplots(1, 3)
    for axes, (key, title) in zip(panels, PANELS, strict=True):
        for name in comparison.names:
            rows = decomposition(comparison, name)
            y = [rows[k][key] for k in order]
            label = verbatim(name) if key == "components" else None
            known = [math.nan if value is None else value for value in y]
            axes.plot(x, known, label=label, markersize=4, alpha=0.85, **style(comparison, name))
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{d:g}" for d in x], fontsize=8)
        axes.minorticks_off()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("density", fontsize=9)
        axes.grid(alpha=0.25)
        plain(axes)
    most = max(row["components"] or 0 for name in comparison.names for row in decomposition(comparison, name))
    if most > 30:
        panels[0].set_yscale("log")
    else:
        panels[0].set_ylim(0, 1.15 * max(most, 1))
    panels[1].set_ylim(-0.03, 1.03)
    panels[2].set_ylim(-0.015, 0.53)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return to_png(figure)
