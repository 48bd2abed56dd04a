"""P-values that are worked out only where somebody looks: of millions of tests, few decide anything."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.evidence.cells import Cells, cells_of

__all__ = ["Known", "Tail", "tail_of"]

Array: TypeAlias = NDArray[np.float64]


class Tail(Protocol):
    """One family of tests. As an array, `np.asarray(tail)`, it is all their p-values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the p-values."""

    def upto(self, level: float) -> tuple[NDArray[np.intp], Array]:
        """The tests with p <= level, as flat places in ascending order, and their p-values."""

    def cells(self) -> Cells:
        """The cell of every test (see `cells`), of the p-values' shape."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All p-values."""


class Known:
    """Tests whose p-values are there already."""

    def __init__(self, pvalues: Array) -> None:
        self.pvalues = pvalues

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the p-values."""
        return self.pvalues.shape

    def upto(self, level: float) -> tuple[NDArray[np.intp], Array]:
        """The tests with p <= level."""
        places = np.flatnonzero(self.pvalues <= level)
        return places, self.pvalues.reshape(-1)[places]

    def cells(self) -> Cells:
        """The cell of every test."""
        return cells_of(self.pvalues)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.pvalues, dtype=dtype, copy=copy)


def tail_of(pvalues: Array | Tail) -> Tail:
    """The tests behind p-values that may be there already."""
    return Known(pvalues) if isinstance(pvalues, np.ndarray) else pvalues
