"""The weights on the inputs that are kept, refitted so that a layer's output changes as little as can be.

Outputs that share an input set S, of which D is dropped, share one linear system. With the covariance C of
the inputs, V = W_S + W_D C[D,S] (C[S,S] + a I)^-1 minimises

    E |W x - V x_S - constant|^2 + a |V - W_S|^2,    a = damping * mean of the diagonal of C.

This is ridge regression towards the weights as they are, not towards zero: inputs that never vary keep
their weights, and the error is never above that of V = W_S, whatever the damping and the rank of C. The
constant is (W - V) E x, which goes into the bias. Without a bias C is the second moment E x x^T, and there is
no constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from gradtrace.errors import InvalidValueError
from gradtrace.structure.row_groups import identical_rows

__all__ = ["DAMPING", "Refit", "mean_square", "refit"]

Array: TypeAlias = NDArray[np.float64]

DAMPING = 1e-3
_MOST_DAMPING = 1.0


@dataclass(frozen=True, eq=False)
class Refit:
    """What `refit` found.

    `weight` (O, I) is zero where dropped; `shift` (O,) is to be added to the bias, and is None without one.
    `damping` is what was used: the given one, or tenfold as often as rounding made a system indefinite.
    """

    weight: Array
    shift: Array | None
    damping: float


def refit(
    weight: Array, kept: NDArray[np.bool_], second: Array, mean: Array | None, damping: float = DAMPING
) -> Refit:
    """Refit a layer's kept weights by least squares, all in float64.

    Args:
        weight: (O, I).
        kept: bool (O, I).
        second: E x x^T of the layer's inputs, (I, I).
        mean: E x, (I,), for a layer with a bias that may take up a constant; None for one without.
        damping: above 0, in shares of the mean of the diagonal.

    One Cholesky factorisation for each distinct set of inputs: |S|^3 / 3 multiplications, for single weights
    once an output.

    Raises:
        InvalidValueError: a damping that is none, or moments that are not those of any inputs.
    """
    if isinstance(damping, bool) or not isinstance(damping, int | float) or not 0 < damping < np.inf:
        raise InvalidValueError("damping", expected="a finite number above 0", got=repr(damping))
    covariance = second if mean is None else second - np.outer(mean, mean)
    fitted = np.where(kept, weight, 0.0)
    size = float(np.diag(covariance).mean()) if len(covariance) else 0.0
    used = float(damping)
    if size > 0:  # else nothing varies, and the constant is all that is lost
        for part in identical_rows(kept):
            inside = np.zeros(kept.shape[1], dtype=np.bool_)
            inside[part.inputs] = True
            if not inside.all():
                system = covariance[np.ix_(inside, inside)]
                lost = covariance[np.ix_(inside, ~inside)] @ weight[np.ix_(part.outputs, ~inside)].T
                taken_up, needed = _solve(system, lost, damping, size)
                fitted[np.ix_(part.outputs, part.inputs)] += taken_up.T
                used = max(used, needed)
    return Refit(fitted, None if mean is None else (weight - fitted) @ mean, used)


def mean_square(
    weight: Array, second: Array, mean: Array | None = None, constant: Array | None = None
) -> Array:
    """E (w_i x + c_i)^2 for each output i, (O,): what `weight` (O, I) and `constant` (O,) come to."""
    squares: Array = ((weight @ second) * weight).sum(1)
    if mean is not None and constant is not None:
        squares += 2 * constant * (weight @ mean) + constant**2
    return np.clip(squares, 0.0, None)  # what is zero but for rounding


def _solve(system: Array, right: Array, damping: float, size: float) -> tuple[Array, float]:
    """(solution, the damping that it took)."""
    diagonal = np.diag_indices_from(system)
    while True:
        damped = system.copy()
        damped[diagonal] += damping * size
        try:
            return cho_solve(cho_factor(damped, overwrite_a=True, check_finite=False), right), damping
        except LinAlgError:
            # Sums in float32 can leave eigenvalues a little below zero.
            damping *= 10
            if damping > _MOST_DAMPING:
                raise InvalidValueError(
                    "input moments",
                    expected="a matrix of second moments, without negative eigenvalues",
                    got="one that no damping makes definite",
                    remedy="record the ledger's Gram matrices again, or pass batches to take them from",
                ) from None
