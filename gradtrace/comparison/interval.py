"""A mean over runs with the interval that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["LEVEL", "Interval", "t_interval"]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """`mean` over `runs` values; `low` and `high` are None for one run, of which no spread is known."""

    mean: float
    low: float | None
    high: float | None
    runs: int

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.high is None else self.high - self.mean

    @property
    def above_zero(self) -> bool | None:
        """Whether all of it lies above 0; None where there is no interval."""
        return None if self.low is None else self.low > 0

    @property
    def below_zero(self) -> bool | None:
        """Whether all of it lies below 0; None where there is no interval."""
        return None if self.high is None else self.high < 0


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and two-sided 95% interval of Student's t, mean +- t(0.975, n - 1) * s / sqrt(n).

    Of paired values pass the differences: what the runs have in common then cancels.
    """
    given, count = np.asarray(values, np.float64), len(values)
    mean = float(given.mean())
    if count < 2:
        return Interval(mean, None, None, count)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * given.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)
