"""How a density over all layers falls on each of them."""

from __future__ import annotations

import numpy as np

from gradtrace.comparison.comparison import Comparison
from gradtrace.report.figure import new_figure, to_png, verbatim

__all__ = ["layers_plot"]

MOST = 40


def layers_plot(comparison: Comparison, k: int) -> bytes:
    """Density of each layer at the k-th density, a row a layer, a column a contender; a PNG.

    A cross marks a layer without a connection in some run. Of more than 40 layers the largest are shown.
    """
    first = comparison.runs[0].layers[comparison.names[0]][k]
    largest = sorted(first, key=lambda name: -first[name].size)[:MOST]
    layers = [name for name in first if name in largest]
    shares = np.array(
        [
            [
                np.mean([run.layers[name][k][layer].density for run in comparison.runs])
                for name in comparison.names
            ]
            for layer in layers
        ]
    )
    figure = new_figure(2.6 + 0.56 * len(comparison.names), 1.6 + 0.3 * len(layers))
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
    axes.set_xticks(
        range(len(comparison.names)),
        [verbatim(name) for name in comparison.names],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(layers)), [verbatim(layer) for layer in layers])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i, layer in enumerate(layers):
        for j, name in enumerate(comparison.names):
            gone = any(run.layers[name][k][layer].collapsed for run in comparison.runs)
            text = "\N{MULTIPLICATION SIGN}" if gone else f"{shares[i][j]:.2f}".lstrip("0")
            colour = "black" if shares[i][j] > 0.55 else "white"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7.5)
    figure.colorbar(image, ax=axes, label="share of the layer kept")
    return to_png(figure)
