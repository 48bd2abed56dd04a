"""The pieces that a mask keeps or drops whole: elements, 16 x 16 tiles, or columns of row groups.

A parameter of more than two dimensions is seen as (shape[0], everything else), outputs first. Where a side is
no multiple of the block, the last block is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRANULARITIES", "Blocks"]

Array: TypeAlias = NDArray[np.float64]
Item = TypeVar("Item", bound=np.generic)

# Name -> (outputs, inputs) of one unit. 64 outputs that share one input set run as a dense product.
GRANULARITIES = {"element": (1, 1), "tile": (16, 16), "rows": (64, 1)}


@dataclass(frozen=True)
class Blocks:
    """How one parameter falls into units, in row-major order of units."""

    shape: tuple[int, ...]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, shape: tuple[int, ...], granularity: str) -> Blocks:
        """The units of a parameter of this shape, at one of `GRANULARITIES`."""
        tall, wide = GRANULARITIES[granularity]
        height = shape[0] if shape else 1
        return cls(shape, _lengths(height, tall), _lengths(math.prod(shape[1:]), wide))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Elements of each unit, flat."""
        return np.outer(self.rows, self.columns).ravel()

    def matrix(self, values: NDArray[Any]) -> Array:
        """The parameter as (outputs, everything else), float64."""
        return np.asarray(values, np.float64).reshape(int(self.rows.sum()), int(self.columns.sum()))

    def groups(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """Units of one size at a time: their numbers as a grid, and the rows and columns they cover."""
        numbers = np.arange(self.sizes.size).reshape(len(self.rows), len(self.columns))
        for tall in np.unique(self.rows):
            for wide in np.unique(self.columns):
                own, across = self.rows == tall, self.columns == wide
                rows = np.flatnonzero(np.repeat(own, self.rows))
                columns = np.flatnonzero(np.repeat(across, self.columns))
                yield numbers[np.ix_(own, across)], rows, columns

    def means(self, scores: NDArray[Any]) -> Array:
        """Summed score over size of each unit, flat: so that ragged units compete fairly."""
        if self.sizes.size == scores.size:
            return np.asarray(scores, np.float64).ravel()
        summed = np.add.reduceat(self.matrix(scores), _starts(self.rows), axis=0)
        return np.add.reduceat(summed, _starts(self.columns), axis=1).ravel() / self.sizes

    def spread(self, units: NDArray[Item]) -> NDArray[Item]:
        """Flat units -> array of the parameter's shape."""
        grid = units.reshape(len(self.rows), len(self.columns))
        return np.repeat(np.repeat(grid, self.rows, axis=0), self.columns, axis=1).reshape(self.shape)


def _lengths(side: int, block: int) -> NDArray[np.int64]:
    whole, rest = divmod(side, block)
    return np.array([block] * whole + [rest] * (rest > 0), np.int64)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths
