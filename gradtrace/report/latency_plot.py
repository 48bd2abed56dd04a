"""How long each model takes a batch."""

from __future__ import annotations

from collections.abc import Mapping

from gradtrace.report.figure import COLOURS, new_figure, plain, to_png, verbatim

__all__ = ["latency_plot"]


def latency_plot(milliseconds: Mapping[str, Mapping[str, float]]) -> bytes:
    """One panel a batch with a bar a model: batch -> model -> median milliseconds; a PNG.

    Every panel has its own scale: batches differ a hundredfold, and what counts is the models beside each
    other.
    """
    models = list(next(iter(milliseconds.values())))
    figure = new_figure(6.8, 1.1 + 0.38 * len(models))
    panels = figure.subplots(1, len(milliseconds), sharey=True, squeeze=False)[0]
    for axes, (batch, at) in zip(panels, milliseconds.items(), strict=True):
        bars = axes.barh(
            [verbatim(model) for model in models],
            [at[model] for model in models],
            color=[COLOURS[k % len(COLOURS)] for k in range(len(models))],
            height=0.7,
        )
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.set_title(verbatim(batch), fontsize=10)
        axes.margins(x=0.28)
        axes.xaxis.set_visible(False)
        plain(axes)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()
    figure.supxlabel("median milliseconds a batch, each panel on its own scale", fontsize=9)
    return to_png(figure)
