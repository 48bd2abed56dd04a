"""The Kolmogorov-Smirnov test of many small samples at once.

D = sup |F_n - F| between the n values of a sample and a distribution F (Kolmogorov 1933), p from the exact
law of D (scipy.stats.kstwo; Simard and L'Ecuyer 2011). Where F is itself the distribution function of N
values, the law is that of n N / (n + N) values, rounded, as scipy.stats.ks_2samp(method="asymp") takes it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstwo

__all__ = ["ks_pvalue", "ks_statistic"]

Array: TypeAlias = NDArray[np.float64]

_EXACT = 2048  # the law takes some 30 microseconds a value: beyond so many it is looked up


def ks_statistic(below: Array, upto: Array) -> Array:
    """D of samples along the last axis, from F(x-) and F(x) at their values, in any order."""
    n = below.shape[-1]
    below, upto = np.sort(below, axis=-1), np.sort(upto, axis=-1)
    after, before = np.arange(1, n + 1) / n, np.arange(n) / n
    return np.asarray(np.maximum((after - upto).max(axis=-1), (below - before).max(axis=-1)))


def ks_pvalue(statistic: Array, n: int, reference: int | None = None) -> Array:
    """P(D >= statistic) for samples of n values; `reference`: N, None for a distribution that is known.

    More than 2,048 statistics are looked up between as many exact values, to about 1e-4 of log p.
    """
    size = n if reference is None else max(1, round(n * reference / (n + reference)))
    if statistic.size <= _EXACT:
        return np.asarray(kstwo.sf(statistic, size))
    knots = np.linspace(float(statistic.min()), float(statistic.max()), _EXACT)
    with np.errstate(divide="ignore"):
        logarithm = np.maximum(np.log(kstwo.sf(knots, size)), np.log(np.finfo(np.float64).tiny))
    return np.exp(np.interp(statistic, knots, logarithm))
