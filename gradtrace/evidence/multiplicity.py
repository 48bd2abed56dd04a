"""Many tests at once: which of them to call discoveries so that few of those are false."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.evidence.tail import Tail, tail_of

__all__ = ["discoveries", "evalue_discoveries"]

Array: TypeAlias = NDArray[np.float64]


def discoveries(pvalues: Array | Tail, fdr: float, method: Literal["bh", "by"] = "bh") -> NDArray[np.bool_]:
    """True where the null is rejected at the false discovery rate.

    `pvalues` of any shape are one family of tests. "bh": Benjamini and Hochberg (1995); the rate holds for
    independent and for positively dependent tests (PRDS), of whatever number. "by": Benjamini and Yekutieli
    (2001); it holds under any dependence, for ln(number of tests) times less power. On average over
    repetitions, not for each one.
    """
    tail = tail_of(pvalues)
    tests = math.prod(tail.shape)
    # What is rejected has p <= fdr: only that is sorted. The order of operations is that of
    # scipy.stats.false_discovery_control.
    places, few = tail.upto(fdr)
    ordered = np.sort(few)
    adjusted = ordered * (tests / np.arange(1, few.size + 1))
    if method == "by":
        adjusted *= (1 / np.arange(1, tests + 1)).sum()
    passing = np.flatnonzero(np.minimum(adjusted, 1) <= fdr)
    rejected = np.zeros(tests, np.bool_)
    if passing.size:
        # The largest that passes takes all smaller ones along.
        rejected[places[few <= ordered[passing[-1]]]] = True
    return rejected.reshape(tail.shape)


def evalue_discoveries(evalues: Array, fdr: float) -> NDArray[np.bool_]:
    """e-BH (Wang and Ramdas 2022, JRSS B 84:822, arXiv 2009.02824): reject the k largest of K e-values.

    k is the largest number for which the k-th largest is at least K / (k fdr). The rate holds under any
    dependence, for e-values at one moment: running maxima over time are none.
    """
    tests = evalues.size
    # Of k = K at the most: only what could be rejected is sorted.
    few = np.sort(evalues[evalues * tests * fdr >= tests])[::-1]
    enough = np.flatnonzero(few * np.arange(1, few.size + 1) * fdr >= tests)
    cut = few[enough[-1]] if enough.size else np.inf
    return np.asarray((evalues >= cut) & (enough.size > 0))
