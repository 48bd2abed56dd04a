"""How far the masks of each two criteria agree."""

from __future__ import annotations

import numpy as np

from gradtrace.evidence.agreement import Agreement
from gradtrace.report.figure import new_figure, to_png, verbatim

__all__ = ["agreement_plot"]


def agreement_plot(agreement: Agreement) -> bytes:
    """Jaccard index of every pair, written above its chance level; a PNG."""
    count = len(agreement.names)
    figure = new_figure(2.3 + 0.66 * count, 1.5 + 0.55 * count)
    axes = figure.add_subplot()
    image = axes.imshow(
        np.asarray(agreement.jaccard), vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest"
    )
    names = [verbatim(name) for name in agreement.names]
    axes.set_xticks(range(count), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for i in range(count):
        for j in range(count):
            value, chance = agreement.jaccard[i][j], agreement.chance[i][j]
            colour = "black" if value > 0.55 else "white"
            words = f"{value:.2f}\n({chance:.2f})"
            axes.text(j, i, words, ha="center", va="center", color=colour, fontsize=8.5)
    figure.colorbar(image, ax=axes, label="kept by both / kept by either\n(in brackets: by chance)")
    return to_png(figure)
