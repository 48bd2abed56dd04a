"""The distribution that a parameter was drawn from before training, as far as torch's own defaults tell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from scipy import stats

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.definition import Study
from gradtrace.evidence.named_arrays import unknown_name

__all__ = ["Distribution", "Initializer", "default_initializer", "initializer_of"]


@runtime_checkable
class Distribution(Protocol):
    """The part of a frozen, continuous scipy.stats distribution that is used here."""

    # Any: scipy's own signatures are overloads that no plain one is compatible with.
    def cdf(self, x: Any) -> Any: ...  # noqa: D102
    def sf(self, x: Any) -> Any: ...  # noqa: D102
    def ppf(self, q: Any) -> Any: ...  # noqa: D102
    def median(self) -> Any: ...  # noqa: D102
    def std(self) -> Any: ...  # noqa: D102


Initializer: TypeAlias = Distribution | Mapping[str, Distribution] | Callable[[str], Distribution | None]

_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}


def _uniform(bound: float) -> Distribution:
    return stats.uniform(-bound, 2 * bound)


def default_initializer(name: str, shape: tuple[int, ...], classes: tuple[str, ...]) -> Distribution:
    """What torch's `reset_parameters` draws for a parameter of at least two dimensions.

    `classes` are its module's class names, most specific first; the first known one decides, and a parameter
    of no known module is taken for a Linear's weight:

    - Linear, Conv*, ConvTranspose*, Bilinear: U(-b, b), b = 1 / sqrt(fan_in), fan_in = shape[1] *
      prod(shape[2:]), as kaiming_uniform_(a=sqrt(5)) gives (Bilinear counts shape[1] alone)
    - Embedding, EmbeddingBag: N(0, 1)
    - RNN, GRU, LSTM and their cells: U(-b, b), b = 1 / sqrt(hidden size)
    - MultiheadAttention's input projections: xavier_uniform_, b = sqrt(6 / (shape[0] + shape[1]))
    - Conv1D of Hugging Face transformers: N(0, 0.02^2)
    """
    fan_in = math.prod(shape[1:])
    for one in classes:
        if one in ("Embedding", "EmbeddingBag"):
            return stats.norm(0, 1)
        if one == "Conv1D":
            return stats.norm(0, 0.02)
        if one == "Bilinear":
            fan_in = shape[1]
        if one == "MultiheadAttention":
            return _uniform(math.sqrt(6 / (shape[0] + shape[1])))
        # weight_hr of an LSTM with projections is (projected, hidden); all other matrices start with gates.
        if one in _GATES:
            hidden = shape[1] if re.search(r"weight_hr", name) else shape[0] // _GATES[one]
            return _uniform(1 / math.sqrt(max(hidden, 1)))
    return _uniform(1 / math.sqrt(max(fan_in, 1)))


def _checked(value: object, where: str) -> Distribution:
    if not isinstance(value, Distribution):
        raise InvalidValueError(
            where,
            expected="a frozen continuous scipy.stats distribution",
            got=f"{type(value).__name__}",
            remedy="pass e.g. scipy.stats.norm(0, 0.02)",
        )
    try:
        with np.errstate(invalid="ignore"):  # parameters out of range end in NaN, refused below
            centre, spread = float(value.median()), float(value.std())
    except (TypeError, ValueError) as error:
        raise InvalidValueError(
            where,
            expected="a distribution with its parameters",
            got=str(error),
            remedy="freeze it: norm(0, 0.02)",
        ) from error
    if not (math.isfinite(centre) and math.isfinite(spread) and spread > 0) or hasattr(value, "pmf"):
        raise InvalidValueError(
            where,
            expected="a continuous distribution of finite median and finite, positive standard deviation",
            got=f"median {centre:g}, standard deviation {spread:g}",
        )
    return value


def initializer_of(study: Study, given: Initializer | None) -> dict[str, Distribution]:
    """Name -> initializer: the given one, or torch's default where there is none.

    A callable may return None for the default. Raises UnknownNameError for a mapping that names no scored
    parameter, InvalidValueError for what is no distribution.
    """
    found = {}
    if isinstance(given, Mapping):
        for name in given:
            if name not in study.weights:
                raise unknown_name("parameter in initializer", name, study.weights)
    for name, weight in study.weights.items():
        one: object = None
        if isinstance(given, Distribution):
            one = given
        elif isinstance(given, Mapping):
            one = given.get(name)
        elif callable(given):
            one = given(name)
        elif given is not None:
            one = given
        if one is None:
            found[name] = default_initializer(name, weight.shape, study.classes.get(name, ()))
        else:
            found[name] = _checked(one, f"initializer for {name!r}")
    return found
