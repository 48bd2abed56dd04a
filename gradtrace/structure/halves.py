"""How nearly a mask falls into two halves: the edges across the best balanced cut that its spectrum shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

__all__ = ["cross_edges", "halves"]

# Below, a dense decomposition is faster than an iteration, which needs more columns than vectors anyway.
SMALL = 64


def halves(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which half each output and each input of `mask` (outputs, inputs) belongs to; dead ones are False.

    Spectral co-clustering (Dhillon, 2001, Co-clustering documents and words using bipartite spectral graph
    partitioning): the second singular vectors of D1^-1/2 A D2^-1/2, split at the median of the live outputs
    and of the live inputs, so that each half has half of either side.
    """
    outputs, inputs = np.zeros(mask.shape[0], np.bool_), np.zeros(mask.shape[1], np.bool_)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if min(rows.size, columns.size) < 2:
        return outputs, inputs
    live = mask[np.ix_(rows, columns)].astype(np.float64)
    left, right = 1 / np.sqrt(live.sum(axis=1)), 1 / np.sqrt(live.sum(axis=0))
    live *= left[:, None]
    live *= right
    if min(live.shape) <= SMALL:
        u, _, v = np.linalg.svd(live, full_matrices=False)
        along, across = u[:, 1], v[1]
    else:
        # A fixed start: the same mask is cut the same way every time.
        start = np.random.default_rng(0).standard_normal(min(live.shape))
        u, sizes, v = svds(csr_array(live), k=2, v0=start, maxiter=20 * min(live.shape))
        second = int(np.argmin(sizes))
        along, across = u[:, second], v[second]
    outputs[rows[_upper(along * left)]] = True
    inputs[columns[_upper(across * right)]] = True
    return outputs, inputs


def cross_edges(mask: NDArray[np.bool_]) -> int:
    """Kept pairs whose output and input lie in different halves; half of them for a full mask."""
    outputs, inputs = halves(mask)
    return int(np.sum(mask & (outputs[:, None] != inputs)))


def _upper(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(values, kind="stable")[(len(values) + 1) // 2 :]
