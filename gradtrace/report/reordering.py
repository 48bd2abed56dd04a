"""The order of a layer's rows and columns in which its sub-operators stand together, for pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradtrace.structure.sub_operator import SubOperator

__all__ = ["reordered"]


def _together(size: int, members: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    # Indices with the same set of users stand side by side; who uses an index first decides before who else
    # uses it does, and what nobody uses comes last.
    uses = np.zeros((len(members), size), dtype=np.bool_)
    for row, indices in enumerate(members):
        uses[row, indices] = True
    first = np.where(uses.any(axis=0), uses.argmax(axis=0) if len(members) else 0, len(members))
    keys = [np.arange(size), *(~uses)[::-1], first]
    order: NDArray[np.int64] = np.lexsort(keys)
    return order


def reordered(
    mask: NDArray[np.bool_], sub_operators: Sequence[SubOperator]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Orders (rows (out,), columns (in,)) so that `mask[rows][:, columns]` (out, in) shows the sub-operators.

    Both are permutations: rows and columns that no sub-operator uses stand last.
    """
    outputs, inputs = mask.shape
    rows = _together(outputs, [part.outputs for part in sub_operators])
    return rows, _together(inputs, [part.inputs for part in sub_operators])
