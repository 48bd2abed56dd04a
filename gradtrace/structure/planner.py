"""Try every kind of sub-operators on a layer's mask and take the fastest, or say why it stays dense."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from gradtrace.structure.candidates import Candidate, candidates
from gradtrace.structure.cost import CostTable
from gradtrace.structure.plan import DENSE, LayerPlan

__all__ = ["MARGIN", "Candidate", "Confirm", "candidates", "plan_layer"]

MARGIN = 1.1
"""A prediction has to beat dense by this factor: it is itself uncertain by about a tenth."""

PROMISING = 0.7
"""A candidate predicted at this speed of dense is measured where it can be: predictions err by as much."""

WORTHWHILE = 1.05
"""A measurement has to beat dense by this factor: below it, what is gained does not pay for the change."""

_TIE = 0.98
_MEASURED = 3  # candidates, and the one of least work
_CLOSE = 1.25  # times the best prediction, up to which a candidate is measured as well


Confirm = Callable[[Candidate], tuple[float, float]]
"""Measures a candidate beside the dense layer: (dense seconds, candidate seconds)."""


def plan_layer(
    mask: NDArray[np.bool_], cost: CostTable, *, refuse: bool = True, confirm: Confirm | None = None
) -> LayerPlan:
    """The fastest way to run a layer that keeps `mask` (out_features, in_features).

    With `refuse`, a layer stays dense whose best candidate is not predicted to be `MARGIN` times as fast as
    dense; or, where `confirm` can measure it, is not even predicted to be `PROMISING`, or is not measured
    to be `WORTHWHILE` (`MARGIN`, if it multiplies as much as dense does). Without, the best is taken anyway.
    Candidates whose predictions are close to the best one, and the one that multiplies least, are measured
    too, and the measurement decides between them. A mask that drops nothing is never measured.
    """
    out_features, in_features = mask.shape
    dense = cost.predict_dense(in_features, out_features) if mask.size else 0.0
    ranked = _ranked(mask, cost)
    predicted, best = ranked[0]
    said = f"{best.words}: predicted {_beside(dense, predicted)}"
    measurable = confirm is not None and not mask.all()
    needed = PROMISING if measurable else MARGIN
    if refuse and predicted * needed > dense:
        return _stays_dense(mask, dense, said, needed)
    if confirm is None:
        return LayerPlan(best.choice, best.sub_operators, mask, predicted, dense, None, said)
    dense_seconds, seconds = confirm(best)
    for other_predicted, other in _also_measured(ranked):
        other_dense, other_seconds = confirm(other)
        if other_dense * seconds > dense_seconds * other_seconds:
            best, predicted, dense_seconds, seconds = other, other_predicted, other_dense, other_seconds
            said = f"{best.words}: predicted {_beside(dense, predicted)}"
    said = f"{said}; measured {_beside(dense_seconds, seconds)}"
    # Dense may be the slower one at the same work, but a tie that noise has decided is likelier.
    needed = WORTHWHILE if _work(best) < mask.size else MARGIN
    if refuse and seconds * needed > dense_seconds:
        return _stays_dense(mask, dense, said, needed)
    return LayerPlan(best.choice, best.sub_operators, mask, predicted, dense, dense_seconds / seconds, said)


def _also_measured(ranked: list[tuple[float, Candidate]]) -> list[tuple[float, Candidate]]:
    """What is measured besides the first: close predictions, and the least work, where those err most."""
    predicted = ranked[0][0]
    chosen = [one for one in ranked[1:_MEASURED] if one[0] <= predicted * _CLOSE]
    least = min(ranked, key=lambda one: _work(one[1]))
    if least is not ranked[0] and least not in chosen and least[0] * PROMISING <= predicted:
        chosen.append(least)
    return chosen


def _stays_dense(mask: NDArray[np.bool_], seconds: float, said: str, needed: float) -> LayerPlan:
    reason = f"stays dense: the best candidate is {said}, needed {needed:g}x"
    return LayerPlan(DENSE, (), mask, seconds, seconds, None, reason)


def _ranked(mask: NDArray[np.bool_], cost: CostTable) -> list[tuple[float, Candidate]]:
    """The candidates with their predicted seconds, fastest first."""
    found: list[tuple[float, Candidate]] = []
    for candidate in candidates(mask):
        seconds = cost.predict_sub_operators(candidate.sub_operators, mask.shape[1], len(mask))
        found.append((seconds, candidate))
    best = found[0]
    for one in found[1:]:
        # A form with more pieces has to promise more than a tie.
        if one[0] < best[0] * _TIE:
            best = one
    others = sorted((one for one in found if one is not best), key=itemgetter(0))
    return [best, *others]


def _work(candidate: Candidate) -> int:
    """Multiplications for each token."""
    return sum(len(part.inputs) * len(part.outputs) for part in candidate.sub_operators)


def _beside(dense: float, seconds: float) -> str:
    speed = f"{dense / seconds:.2f}x" if seconds else "infinitely faster than"
    return f"{speed} dense ({seconds * 1e3:.3g} ms against {dense * 1e3:.3g} ms)"
