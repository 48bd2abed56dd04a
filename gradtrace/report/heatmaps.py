"""A layer's mask as it lies in the model, beside what runs in its place."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradtrace.report.figure import new_figure, to_png, verbatim
from gradtrace.report.reordering import reordered
from gradtrace.structure.plan import LayerPlan, Plan

__all__ = ["draw_after", "draw_before", "heatmaps", "legend_patches"]

# Neither kept nor computed; computed although dropped, because it lies inside a sub-operator; kept.
COLOURS = ("#f1ede4", "#9dbcd4", "#0b3c5d")
WORDS = ("left out", "dropped, but inside a sub-operator", "kept")


def heatmaps(plan: Plan) -> bytes:
    """One row a layer: its mask on the left, what runs on the right, sub-operators side by side; a PNG."""
    figure = new_figure(7.6, max(1.8, 0.5 + 2.1 * len(plan)))
    grid = figure.subplots(max(1, len(plan)), 2, squeeze=False)
    for (name, layer), (left, right) in zip(plan.items(), grid, strict=False):
        draw_before(left, name, layer)
        draw_after(right, name, layer)
    figure.legend(handles=legend_patches(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return to_png(figure)


def legend_patches() -> list[Patch]:
    """What the three colours mean."""
    return [
        Patch(facecolor=colour, edgecolor="#888888", linewidth=0.5, label=words)
        for colour, words in zip(COLOURS, WORDS, strict=True)
    ]


def draw_before(axes: Axes, name: str, layer: LayerPlan) -> None:
    """The mask, rows and columns in the model's order."""
    _draw(axes, layer.mask * 2, f"{verbatim(name)} before: {layer.mask.mean():.0%} kept")


def draw_after(axes: Axes, name: str, layer: LayerPlan) -> None:
    """What is computed; a layer that stays dense keeps its original weights, whatever the mask says."""
    if layer.choice == "dense":
        whole = np.full(layer.mask.shape, 2)
        _draw(axes, whole, f"{verbatim(name)} after: dense, 100% runs")
        return
    computed = np.zeros(layer.mask.shape, dtype=np.int64)
    for part in layer.sub_operators:
        computed[np.ix_(part.outputs, part.inputs)] = 1
    rows, columns = reordered(layer.mask, layer.sub_operators)
    found = (computed * (1 + layer.mask))[np.ix_(rows, columns)]
    _draw(axes, found, f"{verbatim(name)} after: {layer.choice}, {layer.weights / layer.mask.size:.0%} runs")


def _draw(axes: Axes, picture: NDArray[np.integer], title: str) -> None:
    colours = ListedColormap(COLOURS)
    # Pixels are picked, not blended: a blend of "kept" and "left out" would look like the colour between.
    axes.imshow(picture, cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("inputs", fontsize=9)
    axes.set_ylabel("outputs", fontsize=9)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
