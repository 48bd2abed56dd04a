"""`drift`: did the gradient pull in one direction? Sum g beside its own noise, by batch means.

With B_1 .. B_n the sums of g within n windows, S = Sum B and Q = Sum B^2 (the ledger's grad_sum and
window_sumsq), the score is the self-normalised sum R = |S| / sqrt(Q); it needs no equal windows. Its square
gives Student's statistic of the window sums,

    t^2 = (n - 1) R^2 / (n - R^2),

and p = P(|T| >= t) with n - 1 degrees of freedom. That is exact for independent normal B of one variance,
and too large, not too small, for different variances at levels up to 0.08 (Ibragimov and Mueller 2010, J.
Business and Economic Statistics 28:453), as when the gradients shrink during training. Two corrections:

- Gradients are autocorrelated, which is why windows are tested and not steps (batch means). What is left
  between windows is taken off as for an AR(1) series: phi = Var(B) / (L Var(g)) with L steps a window, its
  median over the parameter (over 65,536 of its elements, drawn at random, where it has more), tells rho by
  phi = (1 + rho) / (1 - rho) - 2 rho (1 - rho^L) / (L (1 - rho)^2); over many windows the variance is
  (1 + rho) / (1 - rho) instead of phi, and R^2 is divided by their ratio before the p-value is taken. Windows
  that are long beside the correlation need next to nothing of it.
- No sign symmetric evidence from k windows is stronger than 2^(1-k), that all k agree: then R^2 = k. The
  ledger counts events, not the windows in which they were, so k is known to be at most min(n, events), and at
  least the number of windows that so many events fill. p >= 2^(1-k) with the former; and where the latter is
  less than 10 (and less than n), also p >= 2^(1-R^2), because R^2 <= k: Student's p of three windows that
  agree would be .09 out of 60, and that happens one time in four.

A dependency without support, or whose squares vanish in float32, has R = 0 and p = 1. At convergence E g = 0
for important weights too: this says *learned or not*, never *matters or not*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Gathering, Judge, Study
from gradtrace.evidence.drift_tail import DriftTail

__all__ = [
    "DRIFT",
    "DriftGathering",
    "drift_finding",
    "gather_drift",
    "inflation",
    "judge_drift",
    "self_normalised",
    "windows_of",
]

Array: TypeAlias = NDArray[np.float64]

ASKED = 2**16
_HIGHEST = 0.999  # beyond this rho a window tells nothing of the correlation, whatever its length


def judge_drift(study: Study) -> Judge:
    """Score = |grad_sum| / sqrt(window_sumsq), with a p-value.

    Raises InvalidValueError for a parameter with fewer than two windows.
    """

    def judge(name: str) -> Finding:
        return drift_finding(
            *(study.total(name, one) for one in DRIFT.needs),
            windows=windows_of(study, name),
            steps=study.record(name).steps,
        )

    return judge


def gather_drift(study: Study) -> Callable[[str], Gathering]:
    """The same from totals that come block by block."""

    def gathering(name: str) -> Gathering:
        record = study.record(name)
        return DriftGathering(record.shape, windows=windows_of(study, name), steps=record.steps)

    return gathering


def drift_finding(
    total: Array, squares: Array, step_squares: Array, events: Array, *, windows: int, steps: int
) -> Finding:
    """Score and p-value from S, Q, the sum of the squared steps and the events of at least two windows."""
    gathering = DriftGathering(total.shape, windows=windows, steps=steps)
    sums = dict(zip(DRIFT.needs, (total, squares, step_squares, events), strict=True))
    gathering.add(slice(0, total.size), {one: values.reshape(-1) for one, values in sums.items()})
    return gathering.finding()


class DriftGathering:
    """The ratios and capped counts of a parameter, and the sums of those of its elements that tell rho."""

    least = 0.0  # see `DriftTail`

    def __init__(self, shape: tuple[int, ...], *, windows: int, steps: int) -> None:
        self.shape, self.windows, self.steps = shape, windows, steps
        size, self.counted = math.prod(shape), DriftTail.counted(windows, steps)
        self.ratio, self.events = np.empty(size), np.empty(size, np.min_scalar_type(self.counted))
        self.asked = _asked(size)
        self.sums = {one: np.empty(self.asked.size) for one in DRIFT.needs[:3]}

    def add(self, part: slice, totals: Mapping[str, NDArray[Any]]) -> None:
        """Take a block."""
        total, squares, _, events = (totals[one] for one in DRIFT.needs)
        self.ratio[part] = self.score(part, totals, self_normalised(total, squares))
        self.events[part] = np.minimum(events, self.counted)
        if squares.size and not squares.min() > 0:
            self.events[part][squares == 0] = 0
        first, last = np.searchsorted(self.asked, (part.start, part.stop))
        for one, sums in self.sums.items():
            sums[first:last] = totals[one][self.asked[first:last] - part.start]

    def score(self, part: slice, totals: Mapping[str, NDArray[Any]], ratio: Array) -> Array:
        """The scores of a block, from R of its elements."""
        return ratio

    def finding(self) -> Finding:
        """Score and p-values of all."""
        rest = inflation(*self.sums.values(), windows=self.windows, steps=self.steps)
        ratio, events = self.ratio.reshape(self.shape), self.events.reshape(self.shape)
        told: Any = {"windows": self.windows, "steps": self.steps, "inflation": rest, "least": self.least}
        return Finding(ratio, DriftTail(ratio, events, **told))


def _asked(size: int) -> NDArray[np.int64]:
    """The elements whose median tells the correlation, ascending: all, or as many at random as are plenty."""
    if size <= ASKED:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).integers(0, size, ASKED))


def windows_of(study: Study, name: str) -> int:
    """Windows of a parameter. Raises InvalidValueError for fewer than two: one tells nothing of the noise."""
    record = study.record(name)
    if record.windows < 2:
        raise InvalidValueError(
            f"windows recorded of {name!r}",
            expected="at least 2 to tell a direction from noise",
            got=f"{record.windows}, over {record.steps} steps",
            remedy="record more steps, or with a smaller window_steps",
        )
    return int(record.windows)


def self_normalised(total: Array, squares: Array) -> Array:
    """|S| / sqrt(Q), 0 where Q is 0."""
    size, deviation = np.abs(total), np.sqrt(squares)
    if squares.size and squares.min() > 0:
        return np.asarray(np.divide(size, deviation, out=size))
    return np.asarray(np.divide(size, deviation, out=np.zeros_like(size), where=squares > 0))


def inflation(total: Array, squares: Array, step_squares: Array, *, windows: int, steps: int) -> float:
    """How many times larger the variance of S is than window sums alone would have it, at least 1."""
    length = steps / windows
    if length <= 1:
        return 1.0
    between = (squares - total**2 / windows) / (windows - 1)
    within = (step_squares - total**2 / steps) / (steps - 1)
    # Of a gradient that hardly varies float32 sums leave only rounding.
    usable = within > 1e-5 * step_squares / steps
    if not usable.any():
        return 1.0
    phi = float(np.median(np.maximum(between[usable], 0) / within[usable])) / length

    def expected(rho: float) -> float:
        return float((1 + rho) / (1 - rho) - 2 * rho * (1 - rho**length) / (length * (1 - rho) ** 2))

    if phi <= 1:
        return 1.0
    rho = _HIGHEST if phi >= expected(_HIGHEST) else brentq(lambda r: expected(r) - phi, 0.0, _HIGHEST)
    return float((1 + rho) / (1 - rho) / expected(rho))


DRIFT = Criterion(
    name="drift",
    kind="ledger",
    description="test that the gradient pulled in no direction: its sum beside the noise of its windows",
    judging=judge_drift,
    needs=("grad_sum", "window_sumsq", "grad_sumsq", "events"),
    gathering=gather_drift,
    source="batch means; Ibragimov and Mueller 2010 (JBES 28:453)",
    has_pvalues=True,
)
