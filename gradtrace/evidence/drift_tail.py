"""The p-values of `drift`, which only depend on the ratio R and, where support was rare, on the events."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from gradtrace.evidence.cells import CELLS, FINE, Cells, cells_of

__all__ = ["DriftTail", "drift_pvalue"]

Array: TypeAlias = NDArray[np.float64]

_STEPS = 2**17  # of the table that finds the cell of a ratio
_ASIDE = np.uint16(2**16 - 1)  # in that table: more than one cell lies within the step
_BLOCK = 2**16  # elements at a time, as many as stay in a core's cache
_SLACK = 1e-9  # far more than the rounding of Student's distribution, far less than makes anything slow


def drift_pvalue(ratio: Array, *, windows: int, events: NDArray[Any]) -> Array:
    """P(|T| >= t) of the self-normalised sum, and no less than 2^(1 - k) with k = min(windows, events)."""
    # Rounded to float32, window sums can seem to agree more than wholly.
    rest = np.maximum(windows - ratio**2, windows * 1e-12)
    tail = 2 * stdtr(windows - 1, -ratio * np.sqrt((windows - 1) / rest))
    return np.asarray(
        np.minimum(np.maximum(tail, np.exp2(1 - np.minimum(np.asarray(events, np.float64), windows))), 1.0)
    )


class DriftTail:
    """The tests of one parameter.

    Args:
        ratio: R of each.
        events: in how many steps each had support, integers; more than `windows` tells no more than that.
        windows: number of windows.
        inflation: of the variance of S, for what of correlation is left between windows.
    """

    def __init__(self, ratio: Array, events: NDArray[Any], *, windows: int, inflation: float) -> None:
        self.ratio, self.events, self.windows = ratio, events, windows
        self.spread = math.sqrt(inflation)

    def of(self, ratio: Array) -> DriftTail:
        """The tests of another sum over the same windows, in place of S."""
        return DriftTail(ratio, self.events, windows=self.windows, inflation=self.spread**2)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the p-values."""
        return self.ratio.shape

    def upto(self, level: float) -> tuple[NDArray[np.intp], Array]:
        """The tests with p <= level: only of what could be are p-values taken."""
        t = -float(stdtrit(self.windows - 1, level / 2))
        least = t / np.sqrt((self.windows - 1 + t**2) / self.windows)
        places = np.flatnonzero(self.ratio >= least * self.spread * (1 - _SLACK))
        pvalues = drift_pvalue(
            self.ratio.reshape(-1)[places] / self.spread,
            windows=self.windows,
            events=self.events.reshape(-1)[places],
        )
        return places[pvalues <= level], pvalues[pvalues <= level]

    def cells(self) -> Cells:
        """The cell of every test, looked up by R."""
        edges, table = _lookup(self.windows)
        found = np.empty(self.ratio.size, np.uint16)
        ratio, events = self.ratio.reshape(-1), self.events.reshape(-1)
        scale = _STEPS / np.sqrt(self.windows)
        rare = cells_of(np.exp2(1.0 - np.arange(self.windows + 1.0)).clip(max=1.0))
        for first in range(0, ratio.size, _BLOCK):
            some, cells = ratio[first : first + _BLOCK] / self.spread, found[first : first + _BLOCK]
            np.take(table, (some * scale).astype(np.int32), mode="clip", out=cells)
            aside = np.flatnonzero(cells == _ASIDE)
            cells[aside] = np.searchsorted(edges, some[aside], side="right")
            steps = events[first : first + _BLOCK]
            if steps.size and steps.min() < self.windows:
                np.minimum(cells, rare[np.minimum(steps, self.windows)], out=cells)
            else:
                np.minimum(cells, rare[-1], out=cells)
        return found.reshape(self.ratio.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        pvalues = drift_pvalue(self.ratio / self.spread, windows=self.windows, events=self.events)
        return pvalues if dtype is None else pvalues.astype(dtype)


@lru_cache(maxsize=16)
def _lookup(windows: int) -> tuple[Array, Cells]:
    """The ratios at which the cells from 1 on begin, and for each step of the ratio its cell, or `_ASIDE`."""
    z = np.arange(CELLS - 1) / FINE
    with np.errstate(all="ignore"):
        t = -stdtrit(windows - 1, ndtr(-z))
        edges = np.where(np.isfinite(t), t / np.sqrt((windows - 1 + t**2) / windows), np.inf)
    # p = 1 is a cell of its own, R = 0.
    edges[0] = np.nextafter(0.0, 1.0)
    edges = np.maximum.accumulate(np.where(np.isnan(edges), np.inf, edges))
    bounds = np.arange(_STEPS + 1) * (np.sqrt(windows) / _STEPS)
    low = np.searchsorted(edges, bounds[:-1], side="right")
    high = np.searchsorted(edges, bounds[1:], side="right")
    table = np.where(low == high, low, _ASIDE).astype(np.uint16)
    table[-1] = _ASIDE
    return edges, table
