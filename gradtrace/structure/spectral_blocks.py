"""Spectral co-clustering by scikit-learn (Dhillon, 2001), which balances nothing."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import UnsupportedError

__all__ = ["spectral_blocks"]


def spectral_blocks(
    weights: NDArray[np.float64], blocks: int, imbalance: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels (0 to blocks - 1) of the rows and of the columns of `weights`; dead ones are in block 0.

    Raises:
        UnsupportedError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import SpectralCoclustering
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise UnsupportedError(
            "spectral co-clustering needs scikit-learn", remedy="pip install 'gradtrace[partition]'"
        ) from error
    rows, columns = (np.zeros(size, np.int64) for size in weights.shape)
    live_rows, live_columns = np.flatnonzero(weights.any(axis=1)), np.flatnonzero(weights.any(axis=0))
    # It takes a row of vectors fewer than the smaller side has, and as many blocks as it has rows.
    count = min(blocks, live_rows.size, live_columns.size)
    if count < 2:
        return rows, columns
    found = SpectralCoclustering(n_clusters=count, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct points than blocks: some stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found.fit(weights[np.ix_(live_rows, live_columns)])
    rows[live_rows], columns[live_columns] = found.row_labels_, found.column_labels_
    return rows, columns
