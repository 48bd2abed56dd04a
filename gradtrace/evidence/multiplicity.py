"""Many tests at once: which p-values to call discoveries so that few of them are false."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

__all__ = ["discoveries"]

Array: TypeAlias = NDArray[np.float64]


def discoveries(pvalues: Array, fdr: float) -> NDArray[np.bool_]:
    """True where the null is rejected at the false discovery rate: Benjamini and Hochberg (1995), by scipy.

    `pvalues` of any shape are one family of tests. The rate holds for independent and for positively
    dependent tests (PRDS), of whatever number; on average over repetitions, not for each one.
    """
    if pvalues.size == 0:
        return np.zeros(pvalues.shape, np.bool_)
    adjusted = false_discovery_control(pvalues.ravel(), method="bh")
    return np.asarray(adjusted <= fdr).reshape(pvalues.shape)
