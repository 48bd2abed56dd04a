"""Masks in row groups: of outputs as they lie, or of those that want the same inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["similar_groups"]

STARTS, ROUNDS = 3, 60


def similar_groups(scores: NDArray[np.float64], size: int, density: float) -> NDArray[np.bool_]:
    """What groups of `size` outputs keep that were formed so as to keep as much of `scores` as they can.

    `scores`: nonnegative, (outputs, inputs), a multiple of `size` outputs. In turns, as in k-means of equal
    clusters: every group takes the inputs that its outputs want most, and the outputs are dealt out anew,
    `size` to each group (an assignment problem). The best of some starts, the natural order among them.
    """
    rows, columns = scores.shape
    count, keep = rows // size, round(density * columns)
    best, found = -1.0, np.zeros(scores.shape, np.bool_)
    for start in range(STARTS):
        group = np.arange(rows) // size
        if start:
            np.random.default_rng(start).shuffle(group)
        last = -1.0
        for _ in range(ROUNDS):
            wanted = _wanted(scores, group, count, keep)
            gain = scores @ wanted.T
            places = linear_sum_assignment(gain.repeat(size, axis=1), maximize=True)[1]
            group = places // size
            total = float(gain[np.arange(rows), group].sum())
            if total <= last * (1 + 1e-6):
                break
            last = total
        kept = _wanted(scores, group, count, keep)[group]
        if (total := float(scores[kept].sum())) > best:
            best, found = total, kept
    return found


def _wanted(
    scores: NDArray[np.float64], group: NDArray[np.int64], count: int, keep: int
) -> NDArray[np.bool_]:
    """(count, inputs): the `keep` inputs of largest summed score of each group."""
    summed = np.zeros((count, scores.shape[1]))
    np.add.at(summed, group, scores)
    wanted = np.zeros(summed.shape, np.bool_)
    np.put_along_axis(wanted, np.argsort(-summed, axis=1, kind="stable")[:, :keep], True, axis=1)
    return wanted
