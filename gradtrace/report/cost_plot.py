"""What scoring by each criterion takes."""

from __future__ import annotations

from gradtrace.comparison.comparison import Comparison
from gradtrace.report.comparison_tables import mean_cost
from gradtrace.report.contender_style import style
from gradtrace.report.figure import new_figure, plain, to_png, verbatim

__all__ = ["cost_plot"]


def cost_plot(comparison: Comparison) -> bytes:
    """Bars of seconds and of megabytes at the peak, one a contender, averaged over the runs; a PNG."""
    names = comparison.names
    figure = new_figure(7.6, 1.1 + 0.27 * len(names))
    panels = figure.subplots(1, 2, sharey=True)
    costs = [mean_cost(comparison, name) for name in names]
    for axes, place, title in zip(panels, (0, 1), ("seconds", "MB at the peak"), strict=True):
        colours = [style(comparison, name)["color"] for name in names]
        bars = axes.barh(range(len(names)), [cost[place] for cost in costs], color=colours, height=0.7)
        axes.bar_label(bars, fmt="%.2g", padding=3, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.2)
        axes.xaxis.set_visible(False)
        axes.tick_params(axis="y", length=0)
        plain(axes)
        axes.spines["bottom"].set_visible(False)
    panels[0].set_yticks(range(len(names)), [verbatim(name) for name in names], fontsize=9)
    panels[0].invert_yaxis()
    return to_png(figure)
