"""The local false discovery rate: how likely it is that this very dependency was not learned.

P-values go wrong together: a test that is a little too eager is so for all of a layer's weights. With
thousands of them the null can be seen in the data (Efron 2004, JASA 99:96; Strimmer 2008, BMC Bioinformatics
9:303, whose way this is, but for the cut):

1. z = |Phi^-1(p / 2)|; the null is half-normal of scale s. s is fitted by maximum likelihood to the z below
   their 75% quantile c, as values of a half-normal cut off there (central matching): with a = c / s,
   mean(z^2) / s^2 = 1 - 2 a phi(a) / (2 Phi(a) - 1). It is never taken below 1: seen too narrow, the null is
   left as the theory has it.
2. pi_0 = share of z below c, over 2 Phi(c / s) - 1, at most 1.
3. p' = 2 Phi(-z / s), and f is their density, decreasing: the slope of the least concave majorant of their
   distribution function (Grenander 1956).
4. lfdr = pi_0 / f(p'), at most 1.

P-values of exactly 1 are no tests (nothing was recorded) and stay out: their lfdr is 1. With fewer than
1,000 others s = 1 and pi_0 = 1. It needs most of the layer, three quarters, to be null or nearly so; where
more was learned s comes out too large, and less is found than could be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, isotonic_regression
from scipy.stats import norm

__all__ = ["EmpiricalNull", "local_discoveries", "local_fdr"]

Array: TypeAlias = NDArray[np.float64]

ENOUGH = 1000
CENTRAL = 0.75
_LEAST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class EmpiricalNull:
    """Scale of the null's z (1 = the theory's) and the share of the tests that are null."""

    scale: float
    share: float

    @classmethod
    def of(cls, z: Array) -> EmpiricalNull:
        """Fit it to |z| of a family of tests, flat."""
        if z.size < ENOUGH:
            return cls(1.0, 1.0)
        cut = float(np.quantile(z, CENTRAL))
        central = z[z <= cut]
        square = float(np.mean(central**2))
        # A half-normal far wider than the cut is flat up to it: its mean square is a third of the cut's.
        if cut == 0 or 3 * square >= cut**2:
            return cls(1.0, 1.0)

        def excess(scale: float) -> float:
            a = cut / scale
            return float(scale**2 * (1 - 2 * a * norm.pdf(a) / (2 * norm.cdf(a) - 1)) - square)

        widest = 100 * cut
        scale = widest if excess(widest) <= 0 else float(brentq(excess, math.sqrt(square) / 2, widest))
        scale = max(scale, 1.0)
        share = central.size / z.size / float(2 * norm.cdf(cut / scale) - 1)
        return cls(scale, min(share, 1.0))


def local_fdr(pvalues: Array) -> Array:
    """The local false discovery rate of each test of one family, of the p-values' shape."""
    rates = np.ones(pvalues.size)
    tested = pvalues.ravel() < 1
    if not tested.any():
        return rates.reshape(pvalues.shape)
    z = norm.isf(np.maximum(pvalues.ravel()[tested], _LEAST) / 2)
    null = EmpiricalNull.of(z)
    rates[tested] = np.minimum(null.share / _density(2 * norm.sf(z / null.scale)), 1.0)
    return rates.reshape(pvalues.shape)


def local_discoveries(pvalues: Array, fdr: float) -> NDArray[np.bool_]:
    """True for the tests of least local fdr, as many as keep its mean among them at most `fdr`.

    That mean estimates the false discovery rate (Sun and Cai 2007, JASA 102:901).
    """
    rates = local_fdr(pvalues).ravel()
    order = np.argsort(rates, kind="stable")
    mean = np.cumsum(rates[order]) / np.arange(1, rates.size + 1)
    # The last of several equal ones decides for all of them: none is better than another.
    last = np.searchsorted(rates[order], rates[order], side="right") - 1
    kept = np.zeros(rates.size, np.bool_)
    kept[order] = mean[last] <= fdr
    return kept.reshape(pvalues.shape)


def _density(pvalues: Array) -> Array:
    knots, place, counts = np.unique(pvalues, return_inverse=True, return_counts=True)
    # The piece up to 1 holds no p-value, but the majorant ends there.
    gaps = np.diff(knots, prepend=0.0, append=1.0)
    gaps = np.maximum(gaps, _LEAST)
    slopes = np.append(counts / pvalues.size, 0.0) / gaps
    fitted = isotonic_regression(slopes, weights=gaps, increasing=False).x
    return np.asarray(np.maximum(fitted[place], _LEAST))
