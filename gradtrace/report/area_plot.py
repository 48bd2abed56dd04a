"""How far each criterion's curve lies above the best statistic-based one's, and above the controls'."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from gradtrace.comparison.comparison import Comparison
from gradtrace.comparison.interval import Interval
from gradtrace.report.contender_style import style
from gradtrace.report.figure import new_figure, plain, to_png, verbatim

__all__ = ["area_plot"]


def area_plot(comparison: Comparison) -> bytes:
    """A point a criterion with its 95% interval: beside the reference, and beside the controls; a PNG."""
    names = [one.name for one in comparison.contenders if one.kind != "control"]
    reference = comparison.reference
    figure = new_figure(7.6, 1.3 + 0.3 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    if reference:
        _draw(left, comparison, names, [comparison.between(name, reference) for name in names])
        left.set_title(f"beside {verbatim(reference)}", fontsize=10)
    else:
        left.set_title("no statistic takes part", fontsize=10)
    _draw(right, comparison, names, [comparison.above_controls(name) for name in names])
    right.set_title("beside the best control", fontsize=10)
    left.set_yticks(range(len(names)), [verbatim(name) for name in names])
    left.set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("area between the curves: mean difference in quality", fontsize=9)
    return to_png(figure)


def _draw(axes: Axes, comparison: Comparison, names: Sequence[str], gaps: Sequence[Interval | None]) -> None:
    axes.axvline(0, color="black", linewidth=0.9)
    for place, (name, gap) in enumerate(zip(names, gaps, strict=True)):
        if gap is None:
            continue
        look = style(comparison, name)
        if gap.low is not None and gap.high is not None:
            axes.plot([gap.low, gap.high], [place, place], color=look["color"], linewidth=2, alpha=0.6)
        axes.plot([gap.mean], [place], color=look["color"], marker=look["marker"], markersize=6)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    plain(axes)
