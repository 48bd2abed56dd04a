"""What follows from a comparison, as plain numbers and as sentences."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtrace.comparison.interval import LEVEL, Interval
from gradtrace.comparison.layer_shape import together

if TYPE_CHECKING:
    from gradtrace.comparison.comparison import Comparison

__all__ = [
    "area_lines",
    "best_lines",
    "collapsed",
    "control_lines",
    "decomposition",
    "left_out_lines",
    "shown_density",
    "summary",
]

# One density stands for all where a page has room for one matrix.
SHOWN = 0.3


def summary(comparison: Comparison) -> dict[str, Any]:
    """The derived figures, by contender; the lists follow the densities."""
    found: dict[str, Any] = {
        "runs": len(comparison.runs),
        "level": LEVEL,
        "quality": None,
        "agreement": {
            f"{density:g}": comparison.agreement(k).to_json()
            for k, density in enumerate(comparison.densities)
        },
        "decomposition": {name: decomposition(comparison, name) for name in comparison.names},
        "collapsed": {name: collapsed(comparison, name) for name in comparison.names},
    }
    if comparison.has_quality:
        reference = comparison.reference
        found["quality"] = {
            "dense": asdict(comparison.dense),
            "reference": reference,
            "best": [_best(comparison, k) for k in range(len(comparison.densities))],
            "mean": {name: [asdict(one) for one in comparison.quality(name)] for name in comparison.names},
            "area": {name: _area(comparison, name, reference) for name in comparison.names},
        }
    return found


def _best(comparison: Comparison, k: int) -> dict[str, Any]:
    winners, second, gap = comparison.best_at(k)
    return {"winners": winners, "runner_up": second, "ahead": None if gap is None else asdict(gap)}


def _area(comparison: Comparison, name: str, reference: str) -> dict[str, Any]:
    above = comparison.above_controls(name)
    at = comparison.above_controls_at(name)
    return {
        "above_reference": asdict(comparison.between(name, reference)) if reference else None,
        "above_controls": None if above is None else asdict(above),
        "above_controls_at": [None if one is None else asdict(one) for one in at],
    }


def decomposition(comparison: Comparison, name: str) -> list[dict[str, float | None]]:
    """A contender's masks at each density, all layers together, averaged over the runs.

    `components`; share of the edges in each layer's `largest`; share of all pairs that runs when components
    run densely (`inside`); share of the edges `across` the best balanced cut, None where not looked for.
    """
    rows: list[dict[str, float | None]] = []
    for k in range(len(comparison.densities)):
        every = [together(run.layers[name][k]) for run in comparison.runs]
        edges = [max(1, one.edges) for one in every]
        cut = [one.cross / n for one, n in zip(every, edges, strict=True) if one.cross is not None]
        rows.append(
            {
                "components": float(np.mean([one.components for one in every])),
                "largest": float(np.mean([one.largest / n for one, n in zip(every, edges, strict=True)])),
                "inside": float(np.mean([one.inside / max(1, one.all_pairs) for one in every])),
                "across": float(np.mean(cut)) if len(cut) == len(every) else None,
            }
        )
    return rows


def collapsed(comparison: Comparison, name: str) -> list[dict[str, int]]:
    """At each density: layer -> in how many runs a contender left it no connection; layers with one only."""
    found = []
    for k in range(len(comparison.densities)):
        every = [run.layers[name][k] for run in comparison.runs]
        counts = {layer: sum(one[layer].collapsed for one in every) for layer in every[0]}
        found.append({layer: count for layer, count in counts.items() if count})
    return found


def shown_density(comparison: Comparison) -> int:
    """The place of the density nearest to 0.3, by their ratio: not so high that all masks agree."""
    ratios = [abs(math.log(density / SHOWN)) for density in comparison.densities]
    return ratios.index(min(ratios))


def best_lines(comparison: Comparison) -> tuple[str, ...]:
    """Which contender does best at each density below 1, and whether the interval says so."""
    lines = []
    for k, density in enumerate(comparison.densities):
        if density >= 1:
            continue
        winners, second, gap = comparison.best_at(k)
        value = comparison.quality(winners[0])[k].mean
        names = " and ".join(winners) + (" (equal in every run)" if len(winners) > 1 else "")
        if gap is None:
            what = f"{names}, {value:.3f}"
        elif gap.above_zero:
            verb = "win" if len(winners) > 1 else "wins"
            what = f"{names} {verb} with {value:.3f}, {_of(gap)} above {second}"
        else:
            what = f"no clear winner: {names} {value:.3f}, {_of(gap)} above {second}"
        lines.append(f"At density {density:g}: {what}.")
    return tuple(lines)


def area_lines(comparison: Comparison) -> tuple[str, ...]:
    """Where each criterion's curve lies beside the best statistic-based one's, in words."""
    reference, runs = comparison.reference, len(comparison.runs)
    if not reference:
        return ("No statistic-based criterion takes part: there is nothing to stand beside.",)
    lines = [f"The best statistic-based criterion here is {reference}; areas are differences to its curve."]
    for one in comparison.contenders:
        if one.kind != "ledger":
            continue
        gap = comparison.between(one.name, reference)
        if gap.above_zero is None:
            side = "above" if gap.mean > 0 else "below"
            word = f"lies {abs(gap.mean):.3f} {side} it in this run; one run, no interval"
        elif gap.above_zero:
            word = f"lies above it by {_of(gap)}"
        elif gap.below_zero:
            word = f"lies below it by {_of(gap)}"
        else:
            word = f"cannot be told from it: {_of(gap)} over {runs} runs"
        lines.append(f"{one.name} {word}.")
    return tuple(lines)


def control_lines(comparison: Comparison) -> tuple[str, ...]:
    """Which criteria do not beat the controls, or by less than the interval."""
    weak = []
    for name in comparison.names:
        above = comparison.above_controls(name)
        if above is None or above.above_zero:
            continue
        if above.above_zero is None:
            if above.mean <= 0:
                weak.append(f"{name} does not beat the controls in this run ({above.mean:+.3f}).")
        elif above.mean > 0:
            weak.append(f"{name} beats the controls by less than the interval: {_of(above)}.")
        else:
            weak.append(f"{name} does not beat the controls: {_of(above)}.")
    if len(comparison.runs) == 1:
        weak.append("One run: what another seed would say is not known.")
    return tuple(weak)


def left_out_lines(comparison: Comparison) -> tuple[str, ...]:
    """Which criteria could not take part, and why."""
    reasons = {name: why for run in comparison.runs for name, why in run.left_out.items()}
    return tuple(f"{name} is left out: {why}." for name, why in reasons.items())


def _of(one: Interval) -> str:
    return f"{one.mean:+.3f}" + ("" if one.half is None else f" \N{PLUS-MINUS SIGN} {one.half:.3f}")
