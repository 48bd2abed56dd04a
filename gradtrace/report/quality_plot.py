"""What each criterion's masks are worth, over density."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

from gradtrace.comparison.comparison import Comparison
from gradtrace.report.contender_style import style
from gradtrace.report.figure import new_figure, plain, to_png, verbatim

__all__ = ["draw_quality", "quality_plot"]

PANELS = {"ledger": "from the ledger", "statistic": "from final weights"}


def quality_plot(comparison: Comparison, *, ylabel: str = "quality") -> bytes:
    """Mean quality over density with 95% intervals, a panel a kind of criterion, controls in each; a PNG."""
    kinds = {one.kind for one in comparison.contenders}
    panels = {kind: title for kind, title in PANELS.items() if kind in kinds} or {"control": "controls"}
    figure = new_figure(1.2 + 3.6 * len(panels), 4.6)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (kind, title) in zip(grid, panels.items(), strict=True):
        shown = [one.name for one in comparison.contenders if one.kind in (kind, "control")]
        draw_quality(axes, comparison, shown, ylabel=ylabel if axes is grid[0] else "")
        axes.set_title(title, fontsize=11)
    labels = {
        text: line for axes in grid for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(labels.values()), list(labels), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return to_png(figure)


def draw_quality(
    axes: Axes, comparison: Comparison, names: Iterable[str] = (), *, ylabel: str = "quality"
) -> None:
    """The same of some contenders, by default all, on axes that are there and without a legend.

    Contenders equal in every run share one line; a dotted line is the quality of the weights as they are.
    """
    order = np.argsort(comparison.densities)
    x = np.asarray(comparison.densities)[order]
    lines = _lines(comparison, tuple(names) or comparison.names)
    for place, (name, equals) in enumerate(lines.items()):
        at = [comparison.quality(name)[k] for k in order]
        look = style(comparison, name)
        # Beside one another, or one interval would hide the next.
        beside = x * np.exp(0.016 * (place - (len(lines) - 1) / 2))
        for where, one in zip(beside, at, strict=True):
            if one.low is not None and one.high is not None:
                axes.plot([where, where], [one.low, one.high], color=look["color"], alpha=0.45, linewidth=1.6)
        label = " = ".join(map(verbatim, equals))
        axes.plot(beside, [one.mean for one in at], label=label, markersize=5, **look)
    dense = comparison.dense.mean
    axes.axhline(dense, color="black", linestyle=":", linewidth=1, label="weights as they are")
    # Intervals of two runs can be wider than everything measured: they may leave the picture.
    seen = [one for run in comparison.runs for values in run.quality.values() for one in values]
    room = 0.06 * (max(*seen, dense) - min(*seen, dense)) or 1.0
    axes.set_ylim(min(*seen, dense) - room, max(*seen, dense) + room)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{d:g}" for d in x])
    axes.minorticks_off()
    axes.set_xlabel("density: share of the weights kept")
    axes.set_ylabel(verbatim(ylabel))
    axes.grid(alpha=0.25)
    plain(axes)


def _lines(comparison: Comparison, names: tuple[str, ...]) -> dict[str, list[str]]:
    # Criteria that rank alike would hide one another's line, and one of them would seem to be missing.
    lines: dict[str, list[str]] = {}
    for name in names:
        first = next((other for other in lines if other in comparison.equals(name)), name)
        lines.setdefault(first, []).append(name)
    return lines
