"""What is handed to `select` and `confirm`: scores, p-values and e-values, checked before they are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.weights import as_array

__all__ = [
    "by_family",
    "checked_arrays",
    "checked_evalues",
    "checked_pvalues",
    "checked_share",
    "parted",
    "without_evalues",
    "without_pvalues",
]

Array: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]


def checked_arrays(scores: object, what: str) -> dict[str, Array]:
    """Name -> float64 array. Raises InvalidValueError for anything but finite numbers under names."""
    remedy = "pass what gradtrace.score returns"
    if not isinstance(scores, Mapping):
        raise InvalidValueError(
            what, expected="a mapping from name to array", got=type(scores).__name__, remedy=remedy
        )
    if not scores:
        raise InvalidValueError(what, expected="at least one parameter", got="none", remedy=remedy)
    arrays = {}
    for name, value in scores.items():
        array = np.asarray(as_array(value, f"{what}[{name!r}]"), np.float64)
        if not np.isfinite(array).all():
            raise InvalidValueError(
                f"{what}[{name!r}]",
                expected="finite numbers",
                got=f"{array.size - int(np.isfinite(array).sum())} of {array.size} NaN or infinite",
            )
        arrays[name] = array
    return arrays


def without_pvalues(what: str) -> InvalidValueError:
    """The error for scores that have none."""
    return InvalidValueError(
        what,
        expected="scores with p-values",
        got="scores of a criterion that is no test",
        remedy="score with by='init' or by='drift', or pass density",
    )


def checked_pvalues(scores: Mapping[str, Any], arrays: Mapping[str, Array], what: str) -> dict[str, Array]:
    """The p-values of the scores. Raises InvalidValueError where there are none, or none that fit."""
    given = getattr(scores, "pvalues", None)
    if given is None:
        raise without_pvalues(what)
    return _fitting(given, arrays, "pvalues", 1.0, "numbers in [0, 1]")


def without_evalues(what: str) -> InvalidValueError:
    """The error for scores that have none."""
    return InvalidValueError(
        what,
        expected="scores with e-values",
        got="scores of a criterion that gives none",
        remedy="score with by='sign', or use method='by'",
    )


def checked_evalues(scores: Mapping[str, Any], arrays: Mapping[str, Array], what: str) -> dict[str, Array]:
    """The e-values of the scores. Raises InvalidValueError where there are none, or none that fit."""
    given = getattr(scores, "evalues", None)
    if given is None:
        raise without_evalues(what)
    return _fitting(given, arrays, "evalues", math.inf, "numbers from 0 up")


def checked_share(name: str, value: object, example: str) -> float:
    """A number in (0, 1]. Raises InvalidValueError for anything else."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 < number <= 1:
        raise InvalidValueError(
            name, expected="a number in (0, 1]", got=repr(value), remedy=f"pass e.g. {example}"
        )
    return number


def by_family(
    arrays: Mapping[str, Array], scope: str, decide: Callable[[Array], NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """What `decide` makes of a family of tests: every parameter by itself ("layer"), or all ("global")."""
    if scope == "layer":
        return {name: decide(one) for name, one in arrays.items()}
    flat = {name: one.ravel() for name, one in arrays.items()}
    together = parted(decide(np.concatenate(list(flat.values()))), flat)
    return {name: together[name].reshape(one.shape) for name, one in arrays.items()}


def parted(together: NDArray[Any], like: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """A flat array cut into pieces as long as those of `like`."""
    ends = np.cumsum([len(one) for one in like.values()])
    return dict(zip(like, np.split(together, ends[:-1]), strict=True))


def _fitting(
    given: object, arrays: Mapping[str, Array], what: str, most: float, expected: str
) -> dict[str, Array]:
    values = checked_arrays(given, what)
    if {name: one.shape for name, one in values.items()} != {name: one.shape for name, one in arrays.items()}:
        raise InvalidValueError(what, expected="the names and shapes of the scores", got="others")
    for name, one in values.items():
        if one.size and not 0 <= one.min() <= one.max() <= most:
            raise InvalidValueError(
                f"{what}[{name!r}]", expected=expected, got=f"{one.min():g} to {one.max():g}"
            )
    return values
