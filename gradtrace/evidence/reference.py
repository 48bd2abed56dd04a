"""What a weight is tested against: its initializer as known, as the opening balance shows it, or estimated.

- Known: torch's default for the module class or a given distribution, bent by the recorded decay.
- "opening": the parameter's own opening balance, each value taken where the recorded decay leads it. Nothing
  is assumed of the initializer; p is (1 + the number of opening values as far out) / (1 + their number), so
  that no p is below that.
- "estimated": the default's shape with the scale that makes its median distance from zero that of the final
  weights. Neither ledger nor decay is needed; it holds where at least half the weights stayed as drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.decay import decayed, recorded_history
from gradtrace.evidence.definition import Study
from gradtrace.evidence.initializer import Distribution, Initializer, default_initializer, initializer_of
from gradtrace.evidence.null import Null

__all__ = ["Empirical", "Reference", "Scaled", "nulls_of"]

Array: TypeAlias = NDArray[np.float64]
Reference: TypeAlias = Initializer | Literal["opening", "estimated"]


@dataclass(frozen=True, eq=False)
class Empirical:
    """The distribution of at least one value; tails count one more, half of it at each end."""

    values: Array

    @cached_property
    def ordered(self) -> Array:
        """The values, flat and ascending."""
        return np.sort(self.values, axis=None)

    def cdf(self, x: Any) -> Any:
        """(values <= x, and a half) / (values and one more)."""
        return (np.searchsorted(self.ordered, x, "right") + 0.5) / (self.ordered.size + 1)

    def sf(self, x: Any) -> Any:
        """(values >= x, and a half) / (values and one more)."""
        return (self.ordered.size - np.searchsorted(self.ordered, x, "left") + 0.5) / (self.ordered.size + 1)

    def ppf(self, q: Any) -> Any:
        """Quantiles, linear between the values."""
        return np.quantile(self.ordered, q)

    def median(self) -> Any:
        """The median."""
        return np.median(self.ordered)

    def std(self) -> Any:
        """The standard deviation."""
        return np.std(self.ordered)


@dataclass(frozen=True, eq=False)
class Scaled:
    """A distribution, stretched from zero by a factor above 0."""

    base: Distribution
    factor: float

    def cdf(self, x: Any) -> Any:
        """P(X <= x)."""
        return self.base.cdf(x / self.factor)

    def sf(self, x: Any) -> Any:
        """P(X > x)."""
        return self.base.sf(x / self.factor)

    def ppf(self, q: Any) -> Any:
        """Quantiles."""
        return self.factor * self.base.ppf(q)

    def median(self) -> Any:
        """The median."""
        return self.factor * self.base.median()

    def std(self) -> Any:
        """The standard deviation."""
        return self.factor * self.base.std()


def nulls_of(study: Study, initializer: Reference | None, *, decay: bool) -> Callable[[str], Null]:
    """Parameter name -> the null hypothesis of its weights.

    Raises InvalidValueError for another string, for "opening" without a ledger, and as `initializer_of` does.
    The function returned raises UnsupportedError for a decay that cannot be replayed, StateError for a ledger
    that does not tell it, InvalidValueError where half the weights are zero and the scale is to be estimated.
    """
    if isinstance(initializer, str):
        if initializer == "estimated":
            return lambda name: Null(_estimated(study, name))
        if initializer != "opening":
            raise InvalidValueError(
                "initializer",
                expected="'opening', 'estimated', None or a frozen continuous scipy.stats distribution",
                got=repr(initializer),
            )
        if study.records is None:
            raise InvalidValueError(
                "initializer='opening'",
                expected="a ledger, which holds the opening balance",
                got="None",
                remedy="pass the run's ledger, or initializer='estimated'",
            )
        return lambda name: Null(_opening(study, name, decay))
    known = initializer_of(study, initializer)

    def after(name: str) -> Null:
        if decay and study.records is not None:
            return Null.after_decay(known[name], recorded_history(study.records[name]), name)
        return Null(known[name])

    return after


def _opening(study: Study, name: str, decay: bool) -> Empirical:
    record = study.record(name)
    values = np.asarray(record.opening, np.float64)
    return Empirical(decayed(values, recorded_history(record), name=name) if decay else values)


def _estimated(study: Study, name: str) -> Scaled:
    weight = study.weights[name]
    base = default_initializer(name, weight.shape, study.classes.get(name, ()))
    middle = float(np.median(np.abs(weight))) if weight.size else 1.0
    if middle == 0:
        raise InvalidValueError(
            f"scale of the initializer of {name!r}",
            expected="weights of which at least half are not zero",
            got="a median size of 0",
            remedy="pass the initializer, or initializer='opening' with a ledger",
        )
    return Scaled(base, middle / float(base.ppf(0.75)))
