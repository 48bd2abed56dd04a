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
  median over the parameter, tells rho by phi = (1 + rho) / (1 - rho) - 2 rho (1 - rho^L) / (L (1 - rho)^2);
  over many windows the variance is (1 + rho) / (1 - rho) instead of phi, and R^2 is divided by their ratio
  before the p-value is taken. Windows that are long beside the correlation need next to nothing of it.
- No sign symmetric evidence from k windows is stronger than 2^(1-k), that all k agree. A dependency that was
  supported in few windows therefore has p >= 2^(1-k), k = min(n, events).

A dependency without support, or whose squares vanish in float32, has R = 0 and p = 1. At convergence E g = 0
for important weights too: this says *learned or not*, never *matters or not*.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import t as student

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = [
    "DRIFT",
    "drift_finding",
    "drift_pvalue",
    "inflation",
    "judge_drift",
    "self_normalised",
    "windows_of",
]

Array: TypeAlias = NDArray[np.float64]

_HIGHEST = 0.999  # beyond this rho a window tells nothing of the correlation, whatever its length


def judge_drift(study: Study) -> Judge:
    """Score = |grad_sum| / sqrt(window_sumsq), with a p-value.

    Raises InvalidValueError for a parameter with fewer than two windows.
    """

    def judge(name: str) -> Finding:
        return drift_finding(
            study.total(name, "grad_sum"),
            study.total(name, "window_sumsq"),
            study.total(name, "grad_sumsq"),
            study.total(name, "events"),
            windows=windows_of(study, name),
            steps=study.record(name).steps,
        )

    return judge


def drift_finding(
    total: Array, squares: Array, step_squares: Array, events: Array, *, windows: int, steps: int
) -> Finding:
    """Score and p-value from S, Q, the sum of the squared steps and the events of at least two windows."""
    rest = inflation(total, squares, step_squares, windows=windows, steps=steps)
    ratio = self_normalised(total, squares)
    return Finding(ratio, drift_pvalue(ratio / np.sqrt(rest), windows=windows, events=events))


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
    return np.asarray(np.divide(np.abs(total), np.sqrt(squares), out=np.zeros_like(total), where=squares > 0))


def drift_pvalue(ratio: Array, *, windows: int, events: Array) -> Array:
    """P(|T| >= t) of the self-normalised sum, and no less than 2^(1 - k) with k = min(windows, events)."""
    # Rounded to float32, window sums can seem to agree more than wholly.
    rest = np.maximum(windows - ratio**2, windows * 1e-12)
    tail = 2 * student.sf(ratio * np.sqrt((windows - 1) / rest), windows - 1)
    return np.asarray(np.minimum(np.maximum(tail, np.exp2(1 - np.minimum(events, windows))), 1.0))


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
    needs=("grad_sum", "grad_sumsq", "window_sumsq", "events"),
    source="batch means; Ibragimov and Mueller 2010 (JBES 28:453)",
    has_pvalues=True,
)
