"""The local false discovery rate: how likely it is that this very dependency was not learned.

P-values go wrong together: a test that is a little too eager is so for all of a layer's weights. With
thousands of them the null can be seen in the data (Efron 2004, JASA 99:96; Strimmer 2008, BMC Bioinformatics
9:303, whose way this is, but for the cut):

1. z = |Phi^-1(p / 2)|, counted in cells of width 1/256: nothing below looks at single tests, so a family of
   any size, and one that comes in parts, needs no more than the counts. The null is half-normal of scale s. s
   is fitted by maximum likelihood to the z below their 75% quantile c, as values of a half-normal cut off
   there (central matching): with a = c / s, mean(z^2) / s^2 = 1 - 2 a phi(a) / (2 Phi(a) - 1). It is never
   taken below 1: seen too narrow, the null is left as the theory has it.
2. pi_0 = share of z below c, over 2 Phi(c / s) - 1, at most 1.
3. p' = 2 Phi(-z / s), and f is their density, decreasing: the slope of the least concave majorant of their
   distribution function (Grenander 1956), with every test at the end of its cell nearer to p' = 1: that makes
   lfdr larger rather than smaller.
4. lfdr = pi_0 / f(p'), at most 1, one for each cell.

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
from scipy.special import ndtr

from gradtrace.evidence.cells import CELLS, FINE, cells_of, counted
from gradtrace.evidence.tail import Tail, tail_of

__all__ = ["EmpiricalNull", "local_discoveries", "local_fdr", "rates_of_cells", "smallest_confirmed"]

Array: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]

ENOUGH = 1000
CENTRAL = 0.75
_LEAST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class EmpiricalNull:
    """Scale of the null's z (1 = the theory's) and the share of the tests that are null."""

    scale: float
    share: float

    @classmethod
    def of(cls, counts: Counts) -> EmpiricalNull:
        """Fit it to how many tests have z in [k / 256, (k + 1) / 256), k = 0, 1, ..."""
        size = int(counts.sum())
        if size < ENOUGH:
            return cls(1.0, 1.0)
        reached = np.cumsum(counts)
        central = int(np.searchsorted(reached, CENTRAL * size)) + 1
        cut, inside = central / FINE, int(reached[central - 1])
        # Within a cell z is taken for uniform: hence the 1/12.
        middles = (np.arange(central) + 0.5) ** 2 + 1 / 12
        square = float(middles @ counts[:central]) / inside / FINE**2
        # A half-normal far wider than the cut is flat up to it: its mean square is a third of the cut's.
        if central == 1 or 3 * square >= cut**2:
            return cls(1.0, 1.0)

        def excess(scale: float) -> float:
            a = cut / scale
            density = math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
            return float(scale**2 * (1 - 2 * a * density / (2 * ndtr(a) - 1)) - square)

        widest = 100 * cut
        scale = widest if excess(widest) <= 0 else float(brentq(excess, math.sqrt(square) / 2, widest))
        scale = max(scale, 1.0)
        share = inside / size / float(2 * ndtr(cut / scale) - 1)
        return cls(scale, min(share, 1.0))


def rates_of_cells(counts: Counts) -> Array:
    """The local false discovery rate in each of the `CELLS`, from the tests in each."""
    rates = np.ones(CELLS)
    occupied = np.flatnonzero(counts[1:])
    if not occupied.size:
        return rates
    last = int(occupied[-1]) + 1
    tested = counts[1 : last + 1]
    null = EmpiricalNull.of(tested)
    # From the smallest p' on: what lies between 0 and the last cell's lower end belongs to that cell.
    ends = 2 * ndtr(-np.arange(last) / FINE / null.scale)[::-1]
    gaps = np.maximum(np.diff(ends, prepend=0.0), _LEAST)
    slopes = tested[::-1] / tested.sum() / gaps
    density = isotonic_regression(slopes, weights=gaps, increasing=False).x[::-1]
    rates[1 : last + 1] = np.minimum(null.share / np.maximum(density, _LEAST), 1.0)
    rates[last + 1 :] = rates[last]
    return rates


def smallest_confirmed(counts: Counts, fdr: float) -> int:
    """The cell from which on tests are confirmed, as many as keep their mean lfdr at most `fdr`.

    That mean estimates the false discovery rate (Sun and Cai 2007, JASA 102:901). `CELLS` where none are.
    """
    rates = rates_of_cells(counts)[::-1]
    reached = np.cumsum(counts[::-1])
    mean = np.cumsum(rates * counts[::-1]) / np.maximum(reached, 1)
    # The last of several equal ones decides for all of them: none is better than another.
    last = np.searchsorted(rates, rates, side="right") - 1
    kept = np.flatnonzero(mean[last] <= fdr)
    return CELLS - 1 - int(kept[-1]) if kept.size else CELLS


def local_fdr(pvalues: Array) -> Array:
    """The local false discovery rate of each test of one family, of the p-values' shape."""
    cells = cells_of(pvalues)
    return np.asarray(rates_of_cells(counted(cells))[cells])


def local_discoveries(pvalues: Array | Tail, fdr: float) -> NDArray[np.bool_]:
    """True for the tests of least local fdr, as many as keep its mean among them at most `fdr`."""
    cells = tail_of(pvalues).cells()
    return np.asarray(cells >= smallest_confirmed(counted(cells), fdr))
