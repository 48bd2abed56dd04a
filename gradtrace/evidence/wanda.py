"""`wanda`: |w_ij| ||x_j||, the weight times the size of what it is multiplied with.

Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695. The
paper keeps the same share of every output; `select` keeps a share of the layer, or of every output with
scope="row".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.named_arrays import unknown_name
from gradtrace.evidence.weights import as_array

__all__ = ["WANDA", "judge_wanda"]

Array: TypeAlias = NDArray[np.float64]

MOMENT = "input_sumsq"


def judge_wanda(study: Study, *, inputs: Mapping[str, Any] | None = None) -> Judge:
    """Score = |w_ij| sqrt(E x_j^2).

    `inputs`: parameter name -> sum or mean of the squares of each of its layer's inputs, from calibration
    data: as many numbers as the parameter has inputs (shape[1] of a Linear, shape[0] of an Embedding or of
    Hugging Face's Conv1D), or of the shape of one output's weights (shape[1:] of a convolution), flat or not,
    group after group. Left out, the ledger's own input moments are taken.

    Raises InvalidValueError, UnknownNameError or MismatchError for what are no such numbers.
    """
    moments = None if inputs is None else _checked(study, inputs)

    def judge(name: str) -> Finding:
        weight = np.abs(study.weight(name))
        moment = study.input_squares(name) if moments is None else moments[name]
        return Finding(weight * np.sqrt(_beside(study, name, moment)))

    return judge


def _checked(study: Study, inputs: object) -> dict[str, Array]:
    remedy = "pass inputs={name: (x ** 2).mean(axis=0)} with the inputs x of each layer"
    if not isinstance(inputs, Mapping):
        raise InvalidValueError(
            "inputs",
            expected="a mapping from parameter name to array",
            got=type(inputs).__name__,
            remedy=remedy,
        )
    for name in inputs:
        if name not in study.weights:
            raise unknown_name("parameter in inputs", name, study.weights)
    lacking = [name for name in study.weights if name not in inputs]
    if lacking:
        raise InvalidValueError(
            "inputs", expected=f"every parameter scored, {lacking[0]!r} among them", got="none", remedy=remedy
        )
    found = {}
    for name, value in inputs.items():
        array = np.asarray(as_array(value, f"inputs[{name!r}]"), np.float64)
        if not np.isfinite(array).all() or (array < 0).any():
            raise InvalidValueError(
                f"inputs[{name!r}]",
                expected="sums of squares: finite, from 0 up",
                got=f"{array.min():g} to {array.max():g}",
                remedy=remedy,
            )
        _beside(study, name, array)
        found[name] = array
    return found


def _beside(study: Study, name: str, moment: Array) -> Array:
    """The moments in a shape that multiplies the weight."""
    shape, axis = study.weights[name].shape, study.axes(name)[1]
    if moment.shape == (shape[axis],):
        return moment.reshape([-1 if one == axis else 1 for one in range(len(shape))])
    if axis == 1 and moment.shape == shape[1:]:
        return moment[None]
    groups, rest = divmod(moment.size, max(math.prod(shape[1:]), 1))
    if axis == 1 and moment.ndim == 1 and groups and not rest and shape[0] % groups == 0:
        # Group after group, as the ledger has them: the outputs of a group share its inputs.
        return np.repeat(moment.reshape(groups, *shape[1:]), shape[0] // groups, axis=0)
    raise MismatchError(
        f"input moments of {name!r}",
        expected=f"{shape[axis]} numbers, one an input" + (f", or shape {shape[1:]}" if axis == 1 else ""),
        got=f"shape {moment.shape}",
        remedy="pass the moments of what goes into this layer",
    )


WANDA = Criterion(
    name="wanda",
    kind="statistic",
    description="|w| times the size of its input, from input moments that you pass or the ledger recorded",
    judging=judge_wanda,
    needs=(MOMENT,),
    instead="inputs",
    across=("inputs",),
    recorded_with='below="inputs"',
    source="Sun et al. 2023 (arXiv 2306.11695)",
)
