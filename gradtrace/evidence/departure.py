"""`departure`: did the gradient take the weight away from zero, further than it was? `drift`, asked of that.

A weight that starts at random where the task has no use for it walks to zero. Its gradient has a direction,
and `drift` says so; but what was learned there is an absence. With w_0 the opening balance as decay alone
would have left it (see `displacement`) and w_T the final weight, a move of length |w_T - w_0| ends

    outward = |w_T|               beyond zero, where the sign changed,
              |w_T| - |w_0|       further out, where it did not (less than 0: further in),

and the score is the share of the drift's self-normalised sum R = |S| / sqrt(Q) that led there,

    R max(outward, 0) / |w_T - w_0|,    0 where the gradients pulled the other way (sign S = sign(w_T - w_0)).

The p-value is `drift`'s of this sum. A null hypothesis of drift is one value, no pull at all; here it is
every pull that does not take the weight past zero, and the p-value is that of the nearest of them: where
there is no dependency, w_T is zero but for noise, so outward is that noise's size at most, which R measures
in larger units (of a walk that nothing holds). With w_0 = 0 it is `drift`. Blind to what was there at the
start and became smaller, though the task needs what is left. Where the decay is unknown, w_0 is taken as it
was recorded; that is further out, so no more is confirmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import StateError, UnsupportedError
from gradtrace.evidence.decay import decay_of, linear, recorded_history, rules_of
from gradtrace.evidence.definition import Array, Criterion, Finding, Gathering, Judge, Study
from gradtrace.evidence.drift import DRIFT, DriftGathering, windows_of
from gradtrace.ledger.walk import OPENING

__all__ = ["DEPARTURE", "gather_departure", "judge_departure", "outward_share"]


def judge_departure(study: Study) -> Judge:
    """Score = the outward part of drift's self-normalised sum, with a p-value.

    Raises InvalidValueError for a parameter with fewer than two windows.
    """

    def judge(name: str) -> Finding:
        gathering = _DepartureGathering(study, name)
        totals: dict[str, NDArray[Any]] = {one: study.total(name, one).reshape(-1) for one in DRIFT.needs}
        totals[OPENING] = np.asarray(study.record(name).opening).reshape(-1)
        gathering.add(slice(0, totals[OPENING].size), totals)
        return gathering.finding()

    return judge


def gather_departure(study: Study) -> Callable[[str], Gathering]:
    """The same from totals that come block by block."""
    return lambda name: _DepartureGathering(study, name)


class _DepartureGathering(DriftGathering):
    """Drift's, each block's scores times the part of its way that led from zero."""

    least = 1e-9  # a p-value of exactly 1 would say that there was nothing to test

    def __init__(self, study: Study, name: str) -> None:
        record = study.record(name)
        super().__init__(record.shape, windows=windows_of(study, name), steps=record.steps)
        self.weight, self.decay = study.weights[name].reshape(-1), _decay(study, name)

    def score(self, part: slice, totals: Mapping[str, NDArray[Any]], ratio: Array) -> Array:
        start = self.decay(np.asarray(totals[OPENING], np.float64))
        return ratio * outward_share(start, np.asarray(self.weight[part], np.float64), totals[DRIFT.needs[0]])


def _decay(study: Study, name: str) -> Callable[[Array], Array]:
    """What decay alone makes of a block of the opening balance; itself, where that is not known."""
    record = study.record(name)
    try:
        rules = rules_of(recorded_history(record), name)
    except (StateError, UnsupportedError):
        return lambda opening: opening
    # Only Adam's way is looked up in a grid that reaches as far as any weight.
    largest = 0.0 if linear(rules) else float(np.abs(record.opening).max(initial=0.0))
    return decay_of(rules, size=math.prod(record.shape), largest=largest)


def outward_share(opening: Array, weight: Array, total: Array) -> Array:
    """Which part of the way from `opening` to `weight` led away from zero, 0 to 1; `total`: Sum g."""
    way = weight - opening
    crossed = opening * weight < 0
    outward = np.abs(weight) - np.where(crossed, 0.0, np.abs(opening))
    pulled = (way * total < 0) & (outward > 0)
    return np.asarray(np.divide(outward, np.abs(way), out=np.zeros_like(way), where=pulled))


DEPARTURE = Criterion(
    name="departure",
    kind="ledger",
    description="test that the gradient took the weight no further from zero than it was",
    judging=judge_departure,
    needs=DRIFT.needs,
    gathering=gather_departure,
    opening=True,
    source="drift's, of the part of the way that leads away from zero",
    has_pvalues=True,
)
