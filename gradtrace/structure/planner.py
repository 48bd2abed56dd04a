"""Try every kind of sub-operators on a layer's mask and take the fastest, or say why it stays dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtrace.structure.components import components
from gradtrace.structure.cost import CostTable
from gradtrace.structure.plan import DENSE, LayerPlan
from gradtrace.structure.row_groups import identical_rows, row_groups
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.trimmed import trimmed

__all__ = ["MARGIN", "Candidate", "Confirm", "candidates", "plan_layer"]

MARGIN = 1.1
"""A prediction has to beat dense by this factor: it is itself uncertain by about a tenth."""

PROMISING = 0.7
"""A candidate predicted at this speed of dense is measured where it can be: predictions err by as much."""

WORTHWHILE = 1.05
"""A measurement has to beat dense by this factor: below it, what is gained does not pay for the change."""

_GROUP_SIZES = (64, 128, 256)
_TIE = 0.98


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to run a layer: the kind that a plan records, its words for a reader, and the sub-operators."""

    choice: str
    words: str
    sub_operators: tuple[SubOperator, ...]


Confirm = Callable[[Candidate], tuple[float, float]]
"""Measures a candidate beside the dense layer: (dense seconds, candidate seconds)."""


def candidates(mask: NDArray[np.bool_]) -> Iterator[Candidate]:
    """Every kind of sub-operators that covers `mask` (outputs, inputs), the simplest first."""
    yield Candidate("trimmed", "dead rows and columns removed", trimmed(mask))
    blocks = components(mask)
    if len(blocks) > 1:
        yield Candidate("components", f"{len(blocks)} exact blocks", blocks)
    live = int(mask.any(axis=1).sum())
    identical = identical_rows(mask)
    # With hardly two rows alike this is one product per row, and as many objects: no candidate.
    if 1 < len(identical) <= max(live // 4, 2):
        yield Candidate("row groups", f"{len(identical)} groups of identical rows", identical)
    for size in _GROUP_SIZES:
        if live > size:
            yield Candidate("row groups", f"row groups of {size}", row_groups(mask, size))


def plan_layer(
    mask: NDArray[np.bool_], cost: CostTable, *, refuse: bool = True, confirm: Confirm | None = None
) -> LayerPlan:
    """The fastest way to run a layer that keeps `mask` (out_features, in_features).

    With `refuse`, a layer stays dense whose best candidate is not predicted to be `MARGIN` times as fast as
    dense; or, where `confirm` can measure it, is not even predicted to be `PROMISING`, or is not measured
    to be `WORTHWHILE`. Without, the best is taken anyway.
    """
    out_features, in_features = mask.shape
    dense = cost.predict_dense(in_features, out_features) if mask.size else 0.0
    predicted, best = _fastest(mask, cost)
    said = f"{best.words}: predicted {_beside(dense, predicted)}"
    # What multiplies as much as dense does cannot be faster, only mismeasured.
    needed = MARGIN if confirm is None or _work(best) >= mask.size else PROMISING
    if refuse and predicted * needed > dense:
        return _stays_dense(mask, dense, said, needed)
    if confirm is None:
        return LayerPlan(best.choice, best.sub_operators, mask, predicted, dense, None, said)
    dense_seconds, seconds = confirm(best)
    said = f"{said}; measured {_beside(dense_seconds, seconds)}"
    if refuse and seconds * WORTHWHILE > dense_seconds:
        return _stays_dense(mask, dense, said, WORTHWHILE)
    return LayerPlan(best.choice, best.sub_operators, mask, predicted, dense, dense_seconds / seconds, said)


def _stays_dense(mask: NDArray[np.bool_], seconds: float, said: str, needed: float) -> LayerPlan:
    reason = f"stays dense: the best candidate is {said}, needed {needed:g}x"
    return LayerPlan(DENSE, (), mask, seconds, seconds, None, reason)


def _fastest(mask: NDArray[np.bool_], cost: CostTable) -> tuple[float, Candidate]:
    found = candidates(mask)
    best = next(found)
    least = cost.predict_sub_operators(best.sub_operators, mask.shape[1], len(mask))
    for candidate in found:
        seconds = cost.predict_sub_operators(candidate.sub_operators, mask.shape[1], len(mask))
        # A form with more pieces has to promise more than a tie.
        if seconds < least * _TIE:
            least, best = seconds, candidate
    return least, best


def _work(candidate: Candidate) -> int:
    """Multiplications for each token."""
    return sum(len(part.inputs) * len(part.outputs) for part in candidate.sub_operators)


def _beside(dense: float, seconds: float) -> str:
    speed = f"{dense / seconds:.2f}x" if seconds else "infinitely faster than"
    return f"{speed} dense ({seconds * 1e3:.3g} ms against {dense * 1e3:.3g} ms)"
