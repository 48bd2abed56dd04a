"""Pictures as PNG bytes: matplotlib's object API on the Agg canvas, so nothing global is touched."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradtrace.evidence.agreement import Agreement
from gradtrace.evidence.curves import Curves
from gradtrace.report.printable import printable
from gradtrace.report.reordering import reordered
from gradtrace.structure.plan import Plan

__all__ = ["agreement_plot", "heatmaps", "latency_plot", "quality_plot"]

# Okabe and Ito's colours stay apart under common colour blindness; markers tell the lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DPI = 140


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is shown as boxes; the tables have it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def _verbatim(name: str) -> str:
    # A pair of dollars would be read as mathematics, and a broken formula raises; a label of a hundred
    # letters would leave no room for the picture.
    short = name if len(name) <= 28 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}{name[-14:]}"
    return printable(short).replace("$", r"\$")


def quality_plot(curves: Curves, *, ylabel: str = "quality") -> bytes:
    """Median per criterion over density, with a band from the lowest to the highest run."""
    figure = _figure(7.2, 4.4)
    axes = figure.add_subplot()
    order = np.argsort(curves.densities)
    x = np.asarray(curves.densities)[order]
    for k, name in enumerate(curves.values):
        low, middle, high = np.asarray(curves.spread(name))[order].T
        colour = COLOURS[k % len(COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            x, middle, color=colour, marker=MARKERS[k % len(MARKERS)], markersize=5, label=_verbatim(name)
        )
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{d:g}" for d in x])
    axes.minorticks_off()
    axes.set_xlabel("density (share of the dependencies kept)")
    axes.set_ylabel(_verbatim(ylabel))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png(figure)


def agreement_plot(agreement: Agreement) -> bytes:
    """Jaccard index of every pair, written beside its chance level."""
    count = len(agreement.names)
    figure = _figure(3.4 + 0.95 * count, 2.2 + 0.75 * count)
    axes = figure.add_subplot()
    image = axes.imshow(np.asarray(agreement.jaccard), vmin=0, vmax=1, cmap="cividis")
    names = [_verbatim(name) for name in agreement.names]
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    for i in range(count):
        for j in range(count):
            value, chance = agreement.jaccard[i][j], agreement.chance[i][j]
            colour = "black" if value > 0.55 else "white"
            axes.text(
                j, i, f"{value:.2f}\n({chance:.2f})", ha="center", va="center", color=colour, fontsize=8
            )
    figure.colorbar(image, ax=axes, label="Jaccard (chance below)", shrink=0.85)
    return _png(figure)


def heatmaps(plan: Plan, *, masks: Mapping[str, NDArray[np.bool_]] | None = None) -> bytes:
    """Every layer's mask as it lies in the model (left) and with its sub-operators side by side (right).

    `masks` (module name -> bool (out, in)) replaces the plan's own, e.g. to show layers that stay dense.
    """
    layers = {name: (masks or {}).get(name, layer.mask) for name, layer in plan.items()}
    figure = _figure(8.0, max(1.6, 2.9 * len(layers)))
    grid = figure.subplots(max(1, len(layers)), 2, squeeze=False)
    colours = ListedColormap(["#f4f1ea", "#0b3c5d"])
    for (name, mask), (left, right) in zip(layers.items(), grid, strict=False):
        rows, columns = reordered(mask, plan[name].sub_operators)
        pictures = ((left, mask, "before"), (right, mask[np.ix_(rows, columns)], plan[name].choice))
        for axes, picture, what in pictures:
            axes.imshow(picture, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="antialiased")
            axes.set_title(f"{_verbatim(name)}: {what}, {mask.mean():.0%} kept", fontsize=9)
            axes.set_xlabel("inputs", fontsize=8)
            axes.set_ylabel("outputs", fontsize=8)
            axes.tick_params(labelsize=7)
    return _png(figure)


def latency_plot(milliseconds: Mapping[str, Mapping[str, float]]) -> bytes:
    """Bars side by side: batch -> model -> median milliseconds."""
    figure = _figure(6.4, 3.2)
    axes = figure.add_subplot()
    models = list(next(iter(milliseconds.values())))
    width = 0.8 / len(models)
    for k, model in enumerate(models):
        places = np.arange(len(milliseconds)) + (k - (len(models) - 1) / 2) * width
        bars = axes.bar(
            places,
            [at[model] for at in milliseconds.values()],
            width,
            label=_verbatim(model),
            color=COLOURS[k],
        )
        axes.bar_label(bars, fmt="%.3g", fontsize=8)
    axes.set_xticks(range(len(milliseconds)), [_verbatim(name) for name in milliseconds])
    axes.set_ylabel("median milliseconds a batch")
    axes.legend(frameon=False)
    return _png(figure)
