"""The p-values of `drift`, which only depend on the ratio R and, where support was rare, on the events."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from gradtrace.evidence.cells import CELLS, FINE, Cells, cells_of

__all__ = ["DriftTail", "drift_pvalue", "few_upto"]

Array: TypeAlias = NDArray[np.float64]

_STEPS = 2**17  # of the table that finds the cell of a ratio
_ASIDE = np.uint16(2**16 - 1)  # in that table: more than one cell lies within the step
_BLOCK = 2**16  # elements at a time, as many as stay in a core's cache
FEW = 10  # windows: the best of 2^-9 is nothing that a test of a layer would confirm
_TESTED = 1 - 1e-9  # a p-value of exactly 1 would say that there was nothing to test
_SLACK = 1e-9  # far more than the rounding of Student's distribution, far less than makes anything slow


def few_upto(*, windows: int, steps: int) -> int:
    """Up to how many events a dependency may have had them in few windows: fewer than 10, or than all.

    Windows are of equal length but for the last of an entry, which may be shorter.
    """
    return math.floor((min(FEW, windows) - 1) * steps / windows)


def drift_pvalue(ratio: Array, *, windows: int, steps: int, events: NDArray[Any]) -> Array:
    """P(|T| >= t) of the self-normalised sum, no less than 2^(1 - k), k = min(windows, events).

    Where the events may all lie in few windows, no less than 2^(1 - R^2) either (see `drift`). 1 only where R
    is 0 or there were no events: the others were tested.
    """
    # Rounded to float32, window sums can seem to agree more than wholly.
    rest = np.maximum(windows - ratio**2, windows * 1e-12)
    tail = 2 * stdtr(windows - 1, -ratio * np.sqrt((windows - 1) / rest))
    tail = np.maximum(tail, np.exp2(1 - np.minimum(np.asarray(events, np.float64), windows)))
    few = (events <= few_upto(windows=windows, steps=steps)) & (ratio > 0)
    floor = np.where(few, np.minimum(np.exp2(1 - ratio**2), _TESTED), 0.0)
    return np.asarray(np.minimum(np.maximum(tail, floor), 1.0))


class DriftTail:
    """The tests of one parameter.

    Args:
        ratio: R of each.
        events: in how many steps each had support, integers; more than `counted` tells no more than that.
        windows: number of windows.
        steps: in all windows together.
        inflation: of the variance of S, for what of correlation is left between windows.
        least: what R is taken for where it is less and there were events: those were tested.
    """

    def __init__(
        self,
        ratio: Array,
        events: NDArray[Any],
        *,
        windows: int,
        steps: int,
        inflation: float,
        least: float = 0.0,
    ) -> None:
        self.ratio, self.events, self.windows, self.steps = ratio, events, windows, steps
        self.spread, self.least = math.sqrt(inflation), least

    @staticmethod
    def counted(windows: int, steps: int) -> int:
        """The most events that need telling apart."""
        return max(windows, few_upto(windows=windows, steps=steps) + 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the p-values."""
        return self.ratio.shape

    def upto(self, level: float) -> tuple[NDArray[np.intp], Array]:
        """The tests with p <= level: only of what could be are p-values taken."""
        t = -float(stdtrit(self.windows - 1, level / 2))
        least = t / np.sqrt((self.windows - 1 + t**2) / self.windows)
        places = np.flatnonzero(self.ratio >= least * self.spread * (1 - _SLACK))
        pvalues = self._pvalues(self.ratio.reshape(-1)[places], self.events.reshape(-1)[places])
        return places[pvalues <= level], pvalues[pvalues <= level]

    def cells(self) -> Cells:
        """The cell of every test, looked up by R."""
        usual, seldom = _lookup(self.windows, False), _lookup(self.windows, True)
        found = np.empty(self.ratio.size, np.uint16)
        ratio, events = self.ratio.reshape(-1), self.events.reshape(-1)
        rare = cells_of(np.exp2(1.0 - np.arange(self.windows + 1.0)).clip(max=1.0))
        few = few_upto(windows=self.windows, steps=self.steps)
        for first in range(0, ratio.size, _BLOCK):
            some, cells = ratio[first : first + _BLOCK], found[first : first + _BLOCK]
            some = np.maximum(some, self.least) / self.spread
            usual.cells(some, cells)
            steps = events[first : first + _BLOCK]
            least = int(steps.min())
            if least <= few:
                places = np.flatnonzero(steps <= few)
                cells[places] = seldom.cells(some[places], np.empty(places.size, np.uint16))
            np.minimum(
                cells, rare[np.minimum(steps, self.windows)] if least < self.windows else rare[-1], out=cells
            )
        return found.reshape(self.ratio.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        pvalues = self._pvalues(self.ratio, self.events)
        return pvalues if dtype is None else pvalues.astype(dtype)

    def _pvalues(self, ratio: Array, events: NDArray[Any]) -> Array:
        given = np.maximum(ratio, self.least) / self.spread
        return drift_pvalue(given, windows=self.windows, steps=self.steps, events=events)


class _Lookup(NamedTuple):
    """The ratios at which the cells from 1 on begin, and for each step of the ratio its cell, or `_ASIDE`."""

    edges: Array
    table: Cells
    scale: float

    def cells(self, ratio: Array, out: Cells) -> Cells:
        """The cell of each ratio, into `out`."""
        np.take(self.table, (ratio * self.scale).astype(np.int32), mode="clip", out=out)
        aside = np.flatnonzero(out == _ASIDE)
        out[aside] = np.searchsorted(self.edges, ratio[aside], side="right")
        # p = 1 is a cell of its own, R = 0; the table's first step leaves it out, for many lie there.
        np.multiply(out, ratio > 0, out=out)
        return out


@lru_cache(maxsize=16)
def _lookup(windows: int, few: bool) -> _Lookup:
    """Of any number of events, or of those that may lie in few windows."""
    z = np.arange(CELLS - 1) / FINE
    with np.errstate(all="ignore"):
        tail = ndtr(-z)
        t = -stdtrit(windows - 1, tail)
        edges = np.where(np.isfinite(t), t / np.sqrt((windows - 1 + t**2) / windows), np.inf)
        if few:
            edges = np.maximum(edges, np.sqrt(-np.log2(tail)))
    edges[0] = 0.0
    edges = np.maximum.accumulate(np.where(np.isnan(edges), np.inf, edges))
    bounds = np.arange(_STEPS + 1) * (np.sqrt(windows) / _STEPS)
    low = np.searchsorted(edges, bounds[:-1], side="right")
    high = np.searchsorted(edges, bounds[1:], side="right")
    table = np.where(low == high, low, _ASIDE).astype(np.uint16)
    table[-1] = _ASIDE
    return _Lookup(edges, table, float(_STEPS / np.sqrt(windows)))
