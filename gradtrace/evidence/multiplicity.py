"""Many tests at once: which of them to call discoveries so that few of those are false."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

__all__ = ["discoveries", "evalue_discoveries"]

Array: TypeAlias = NDArray[np.float64]


def discoveries(pvalues: Array, fdr: float, method: Literal["bh", "by"] = "bh") -> NDArray[np.bool_]:
    """True where the null is rejected at the false discovery rate, by scipy.

    `pvalues` of any shape are one family of tests. "bh": Benjamini and Hochberg (1995); the rate holds for
    independent and for positively dependent tests (PRDS), of whatever number. "by": Benjamini and Yekutieli
    (2001); it holds under any dependence, for ln(number of tests) times less power. On average over
    repetitions, not for each one.
    """
    if pvalues.size == 0:
        return np.zeros(pvalues.shape, np.bool_)
    adjusted = false_discovery_control(pvalues.ravel(), method=method)
    return np.asarray(adjusted <= fdr).reshape(pvalues.shape)


def evalue_discoveries(evalues: Array, fdr: float) -> NDArray[np.bool_]:
    """e-BH (Wang and Ramdas 2022, JRSS B 84:822, arXiv 2009.02824): reject the k largest of K e-values.

    k is the largest number for which the k-th largest is at least K / (k fdr). The rate holds under any
    dependence, for e-values at one moment: running maxima over time are none.
    """
    flat = evalues.ravel()
    order = np.argsort(-flat, kind="stable")
    ranks = np.arange(1, flat.size + 1)
    enough = np.flatnonzero(flat[order] * ranks * fdr >= flat.size)
    rejected = np.zeros(flat.size, np.bool_)
    if enough.size:
        rejected[order[: enough[-1] + 1]] = True
    return rejected.reshape(evalues.shape)
