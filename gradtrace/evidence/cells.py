"""Tests counted by their surprise: z = |Phi^-1(p / 2)|, in cells of width 1/256.

A cell is two bytes a test, and the counts of two families add up to those of both.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["CELLS", "FINE", "Cells", "cells_of", "counted"]

Array: TypeAlias = NDArray[np.float64]
Cells: TypeAlias = NDArray[np.uint16]

FINE = 256  # cells for one unit of z
_LEAST = float(np.finfo(np.float64).tiny)
CELLS = 2 + math.ceil(-float(ndtri(_LEAST / 2)) * FINE)
_BLOCK = 2**16  # tests at a time: what is made of them on the way stays in a core's cache


def counted(cells: Cells) -> NDArray[np.int64]:
    """How many tests are in each of the `CELLS`."""
    counts = np.zeros(CELLS, np.int64)
    flat = cells.reshape(-1)
    for first in range(0, flat.size, _BLOCK):  # bincount makes eight bytes of each two
        counts += np.bincount(flat[first : first + _BLOCK], minlength=CELLS)
    return counts


def cells_of(pvalues: Array) -> Cells:
    """The cell of each test, of the p-values' shape: 0 for p = 1, 1 + k for z in [k / 256, (k + 1) / 256)."""
    cells = np.empty(pvalues.size, np.uint16)
    flat = pvalues.reshape(-1)
    for first in range(0, flat.size, _BLOCK):
        some = flat[first : first + _BLOCK]
        z = -ndtri(np.maximum(some, _LEAST) / 2)
        cells[first : first + _BLOCK] = np.where(some < 1, 1 + z * FINE, 0)
    return cells.reshape(pvalues.shape)
