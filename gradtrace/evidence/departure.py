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

import numpy as np

from gradtrace.errors import StateError, UnsupportedError
from gradtrace.evidence.decay import decayed, recorded_history
from gradtrace.evidence.definition import Array, Criterion, Finding, Judge, Study
from gradtrace.evidence.drift import DRIFT, drift_finding, windows_of
from gradtrace.evidence.drift_tail import DriftTail

__all__ = ["DEPARTURE", "judge_departure", "outward_share"]

# A p-value of exactly 1 would say that there was nothing to test.
_TESTED = 1e-9


def judge_departure(study: Study) -> Judge:
    """Score = the outward part of drift's self-normalised sum, with a p-value.

    Raises InvalidValueError for a parameter with fewer than two windows.
    """

    def judge(name: str) -> Finding:
        sums = [study.total(name, one) for one in DRIFT.needs]
        drift = drift_finding(*sums, windows=windows_of(study, name), steps=study.record(name).steps)
        assert isinstance(drift.pvalue, DriftTail)
        score = drift.score * outward_share(_start(study, name), study.weight(name), sums[0])
        asked = np.where(sums[1] > 0, np.maximum(score, _TESTED), 0.0)
        return Finding(score, drift.pvalue.of(asked))

    return judge


def _start(study: Study, name: str) -> Array:
    record = study.record(name)
    opening = np.asarray(record.opening, np.float64)
    try:
        return decayed(opening, recorded_history(record), name=name)
    except (StateError, UnsupportedError):
        return opening


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
    source="drift's, of the part of the way that leads away from zero",
    has_pvalues=True,
)
