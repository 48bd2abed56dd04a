"""w^2 F^a: a second moment of the gradient as curvature, tempered by an exponent, at will per output.

With a = 1 this is the diagonal Fisher approximation of the loss increase when w is set to zero, up to a
factor (LeCun et al. 1990, Optimal Brain Damage, with the Fisher for the Hessian; Theis et al. 2018, arXiv
1801.05787). With a = 0 it is w^2, which ranks as magnitude does. Between them it is a compromise found by
trial, as GPTQ's and SparseGPT's dampings are, not an estimate of anything. `EXPONENT` is what was never much
worse than the best of other criteria on the tasks of benchmarks/criteria_search.py (docs/criteria.md).

With `per_row` F is divided by its mean over the inputs of the output it belongs to, so that outputs with
large gradients do not take all there is to keep.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError

__all__ = ["EXPONENT", "check_tempering", "tempered"]

EXPONENT = 0.5

Array: TypeAlias = NDArray[np.float64]


def check_tempering(exponent: object, per_row: object) -> None:
    """Raise InvalidValueError for an exponent that is no number from 0 up, or a switch that is none."""
    number = isinstance(exponent, Real) and not isinstance(exponent, bool)
    if not number or not math.isfinite(exponent) or exponent < 0:  # type: ignore[arg-type, operator]
        raise InvalidValueError(
            "exponent", expected="a number from 0 up", got=repr(exponent), remedy="pass e.g. exponent=0.5"
        )
    if not isinstance(per_row, bool | np.bool_):
        raise InvalidValueError("per_row", expected="True or False", got=repr(per_row))


def tempered(weight: Array, moment: Array, *, exponent: float, per_row: bool, outputs: int) -> Array:
    """w^2 F^exponent, float64 of the parameter's shape; `outputs` is the dimension that counts outputs.

    A dependency whose moment is zero scores zero, whatever the exponent.
    """
    if per_row:
        others = tuple(axis for axis in range(moment.ndim) if axis != outputs)
        mean = moment.mean(axis=others, keepdims=True)
        moment = np.divide(moment, mean, out=np.zeros_like(moment), where=mean > 0)
    # 0**0 would be 1.
    scaled = moment**exponent if exponent > 0 else np.sign(moment)
    return np.asarray(weight**2 * scaled)
