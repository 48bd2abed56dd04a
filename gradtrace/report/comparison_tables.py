"""The tables of a comparison."""

from __future__ import annotations

import numpy as np

from gradtrace.comparison.comparison import Comparison
from gradtrace.comparison.interval import Interval
from gradtrace.comparison.summary import collapsed, decomposition
from gradtrace.report.table import Table

__all__ = [
    "area_table",
    "collapse_lines",
    "cost_table",
    "decomposition_table",
    "layers_table",
    "mean_cost",
    "quality_table",
]

NOT_ABOVE = "\N{ALMOST EQUAL TO}"


def quality_table(comparison: Comparison, *, title: str = "Quality by density") -> Table:
    """Mean over the runs and half its 95% interval, where there is more than one run."""
    runs, marked, rows = len(comparison.runs), False, []
    for name in comparison.names:
        cells = []
        for one, above in zip(comparison.quality(name), comparison.above_controls_at(name), strict=True):
            weak = above is not None and not (above.mean > 0 if above.low is None else above.low > 0)
            marked |= weak
            cells.append((NOT_ABOVE if weak else "") + _figure(one))
        rows.append((name, *cells))
    note = f"Mean of {runs} runs \N{PLUS-MINUS SIGN} half the 95% interval (Student's t)."
    if runs == 1:
        note = "One run: no interval is known."
    if marked:
        what = "not above the best control" + (" by more than the interval of that difference" * (runs > 1))
        note += f" {NOT_ABOVE} {what}."
    note += f" The weights as they are: {_figure(comparison.dense)}."
    return Table(title, ("criterion", *(f"{d:g}" for d in comparison.densities)), tuple(rows), note)


def area_table(comparison: Comparison) -> Table:
    """Area between each criterion's curve and the best statistic-based one's, and the best control's."""
    reference = comparison.reference
    rows = []
    for one in comparison.contenders:
        above = comparison.above_controls(one.name)
        beside = comparison.between(one.name, reference) if reference and one.name != reference else None
        rows.append((one.name, one.kind, _gap(beside), _gap(above)))
    note = (
        "Mean difference in quality over the logarithm of the density, paired by run. "
        "The statistic is the best of those here, chosen on these same runs: rather too strong a rival."
    )
    columns = ("criterion", "kind", f"above {reference or 'a statistic'}", "above the best control")
    return Table("Area between curves", columns, tuple(rows), note, prose=("kind",))


def decomposition_table(comparison: Comparison, k: int) -> Table:
    """What the masks at the k-th density fall into."""
    rows = []
    for name in comparison.names:
        row = decomposition(comparison, name)[k]
        shares = (_percent(row[key]) for key in ("largest", "inside", "across"))
        rows.append((name, f"{row['components']:.1f}", *shares))
    note = (
        "Components of the graph of inputs and outputs, summed over layers; edges in each layer's largest; "
        "share of the dense product when each component runs alone; edges across the best "
        "balanced cut into halves: the controls show what it finds where there are no blocks."
    )
    columns = ("criterion", "components", "in the largest", "share run", "across the cut")
    return Table(f"Decomposability at density {comparison.densities[k]:g}", columns, tuple(rows), note)


def layers_table(comparison: Comparison, k: int) -> Table:
    """Density and live inputs of each layer at the k-th density, extremes over the layers."""
    rows = []
    for name in comparison.names:
        every = [run.layers[name][k] for run in comparison.runs]
        mean = {layer: float(np.mean([one[layer].density for one in every])) for layer in every[0]}
        low, high = min(mean, key=mean.__getitem__), max(mean, key=mean.__getitem__)
        gone = collapsed(comparison, name)[k]
        words = ", ".join(f"{layer} ({count})" for layer, count in list(gone.items())[:3])
        if len(gone) > 3:
            words += f" and {len(gone) - 3} more"
        rows.append((name, f"{mean[low]:.1%} {low}", f"{mean[high]:.1%} {high}", words or "-"))
    columns = ("criterion", "sparsest layer", "densest layer", "collapsed (runs)")
    note = "Collapsed: no connection is left from any input of the layer to any output."
    title = f"Layers at density {comparison.densities[k]:g}"
    return Table(title, columns, tuple(rows), note, prose=columns[1:])


def collapse_lines(comparison: Comparison) -> tuple[str, ...]:
    """Which contenders leave a layer without any connection, and from which density on; one line at least."""
    lines = []
    order = np.argsort(comparison.densities)[::-1]
    for name in comparison.names:
        gone = collapsed(comparison, name)
        first = next((int(k) for k in order if gone[k]), None)
        if first is not None:
            layers = list(gone[first])
            some = layers[0] + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
            lines.append(f"With {name}, {some} collapses from density {comparison.densities[first]:g} on.")
    return tuple(lines) or ("No layer collapses: each keeps a connection at every density.",)


def cost_table(comparison: Comparison) -> Table:
    """Seconds, memory and the data that each contender reads, averaged over the runs."""
    rows = []
    for name in comparison.names:
        seconds, megabytes = mean_cost(comparison, name)
        read = dict.fromkeys(one for run in comparison.runs for one in run.cost[name].reads)
        rows.append((name, f"{seconds:.3g}", f"{megabytes:.3g}", ", ".join(read) or "nothing"))
    note = (
        "Scoring all parameters once, reading included. Memory: peak above what was in use, scores included, "
        "as tracemalloc counts it."
    )
    return Table("Cost", ("criterion", "seconds", "MB", "reads"), tuple(rows), note, prose=("reads",))


def mean_cost(comparison: Comparison, name: str) -> tuple[float, float]:
    """(seconds, megabytes) of a contender, averaged over the runs."""
    costs = [run.cost[name] for run in comparison.runs]
    return float(np.mean([c.seconds for c in costs])), float(np.mean([c.memory for c in costs])) / 1e6


def _figure(one: Interval) -> str:
    return _short(one.mean) + ("" if one.half is None else f"\N{PLUS-MINUS SIGN}{_short(one.half)}")


def _gap(one: Interval | None) -> str:
    if one is None:
        return "-"
    return f"{one.mean:+.3f}" + ("" if one.half is None else f" \N{PLUS-MINUS SIGN} {one.half:.3f}")


def _short(value: float) -> str:
    # Without the zero before the point six densities fit into 80 columns.
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
