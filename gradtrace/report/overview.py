"""The whole comparison in one picture: which criterion keeps what matters, and what a layer becomes."""

from __future__ import annotations

from gradtrace.comparison.comparison import Comparison
from gradtrace.report.figure import new_figure, to_png
from gradtrace.report.heatmaps import draw_after, draw_before, legend_patches
from gradtrace.report.quality_plot import draw_quality
from gradtrace.structure.plan import Plan

__all__ = ["overview"]


def overview(by_element: Comparison, by_rows: Comparison, plan: Plan, *, ylabel: str = "quality") -> bytes:
    """Quality over density for single weights and for row groups, above one layer before and after; a PNG.

    The layer shown is the first that was converted, or the first one when all stay dense.
    """
    figure = new_figure(9.0, 7.4)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3, 2.3))[:, 0]
    left, right = above.subplots(1, 2, sharey=True)
    draw_quality(left, by_element, ylabel=ylabel)
    draw_quality(right, by_rows, ylabel="")
    left.legend(frameon=False, fontsize=9)
    left.set_title("single weights kept", fontsize=11)
    right.set_title("inputs kept for 64 outputs at once", fontsize=11)
    name = (*plan.converted, *plan)[0]
    before, after = below.subplots(1, 2)
    draw_before(before, name, plan[name])
    draw_after(after, name, plan[name])
    below.legend(handles=legend_patches(), loc="outside lower center", ncols=3, frameon=False)
    return to_png(figure)
