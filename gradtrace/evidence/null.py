"""The null hypothesis of the `init` test: a weight is still distributed as its initializer, decayed or not.

The statistic is D = |W - c|, the distance from the null's median c, and the p-value is two-sided and exact
for any continuous initializer, symmetric or not:

    p(w) = P(|W - c| >= |w - c|) = F(c - d) + 1 - F(c + d),   d = |w - c|

Under decay W = f(W_0), with f the replayed run (see `decay`), so the tails are those of the starting values:
F_W(x) = F_0(f^-1(x)). Adam with L2 makes f overshoot near zero, where it is not monotone; there f is replaced
by its running maximum: p is exact for a w beyond every overshoot, and can only be too large elsewhere.
For AdamW and SGD p is exact throughout.

A stored weight is a rounded one. A uniform null ends sharply, and rounding can push a weight past its end, to
p = 0: in bfloat16 one in several hundred, in float32 a few of 10^8, enough to break any control of the error
rate. So d is taken as the least distance that could have been rounded to the stored weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.evidence.decay import decay_curve, rules_of
from gradtrace.evidence.initializer import Distribution

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Update

__all__ = ["Null"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Null:
    """An initializer, and how decay bends it: |w_0| -> |w|, both ascending from 0, or None for no decay."""

    initializer: Distribution
    curve: tuple[Array, Array] | None = None

    @classmethod
    def after_decay(cls, initializer: Distribution, history: Iterable[Update], name: str) -> Null:
        """The initializer after the recorded decay. Raises UnsupportedError as `rules_of` does."""
        rules = rules_of(history, name)
        if not rules:
            return cls(initializer)
        # Beyond the outermost quantiles the curve goes on straight.
        reach = np.abs(initializer.ppf([1e-12, 1 - 1e-12])).max()
        start, end = decay_curve(rules, math.frexp(float(reach))[1])
        return cls(initializer, (start, np.maximum.accumulate(np.abs(end))))

    @cached_property
    def centre(self) -> float:
        """The null's median."""
        return float(self._bend(np.array(self.initializer.median())))

    @cached_property
    def spread(self) -> float:
        """The null's standard deviation, never quite zero: decay can shrink the null to a point."""
        whole = max(float(self.initializer.std()), 1e-100)
        if self.curve is None:
            return whole
        sample = self.initializer.ppf((np.arange(4096) + 0.5) / 4096)
        return whole * max(float(np.std(self._bend(sample)) / np.std(sample)), 1e-9)

    def distance(self, weight: NDArray[np.floating[Any]]) -> Array:
        """|w - centre| in standard deviations of the null."""
        return np.abs(np.asarray(weight, np.float64) - self.centre) / self.spread

    def position(self, weight: NDArray[np.floating[Any]]) -> Array:
        """F(w): the null's distribution function at the weights."""
        return np.asarray(self.initializer.cdf(self._unbend(np.asarray(weight, np.float64))))

    def pvalue(self, weight: NDArray[np.floating[Any]], rounding: float = 0.0) -> Array:
        """P(|W - centre| >= |w - centre|); `rounding` is the relative precision of the weight."""
        weight = np.asarray(weight, np.float64)
        apart = np.maximum(np.abs(weight - self.centre) - rounding * np.abs(weight), 0)
        low, high = self._unbend(self.centre - apart), self._unbend(self.centre + apart)
        tails: Array = np.asarray(self.initializer.cdf(low)) + np.asarray(self.initializer.sf(high))
        return np.minimum(tails, 1.0)

    def _bend(self, start: Array) -> Array:
        if self.curve is None:
            return start
        return _signed(start, *self.curve)

    def _unbend(self, end: Array) -> Array:
        if self.curve is None:
            return end
        starts, ends = self.curve
        # Of starting values that end in one place, the nearest to zero: it gives the largest p-value.
        ends, first = np.unique(ends, return_index=True)
        return _signed(end, ends, starts[first])


def _signed(x: Array, knots: Array, values: Array) -> Array:
    """The odd function through (knots, values), linear between the knots and beyond them."""
    size = np.abs(x)
    inside = np.interp(size, knots, values)
    if len(knots) > 1:
        slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
        inside = np.where(size > knots[-1], values[-1] + slope * (size - knots[-1]), inside)
    else:
        inside = np.where(size > knots[-1], np.inf, inside)
    return np.asarray(np.sign(x) * inside)
