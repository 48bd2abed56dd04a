"""Two sides of a weighted bipartite graph, cut into balanced blocks with as much weight inside as is found.

Start: the leading left and right singular vectors of D1^-1/2 A D2^-1/2 (Dhillon, 2001, Co-clustering
documents and words using bipartite spectral graph partitioning), assigned to blocks by a pivoted QR (Damle,
Minden and Ying, 2018, Simple, direct and efficient multi-way spectral clustering), which needs no random
centres. The vectors come from a fixed number of power iterations (Halko, Martinsson and Tropp, 2011, Finding
structure with randomness), so that noise, whose singular values lie close together, takes no longer.
Then, in turn, each side moves to the blocks that hold most of its weight, as far as these have room.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr

__all__ = ["balanced_blocks", "room_for", "singular_vectors"]

Array: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int64]

_SMALL = 64  # below, a dense decomposition is faster than an iteration
_SPARE, _ITERATIONS = 8, 10
_ROUNDS = 25


def balanced_blocks(
    weights: Array, blocks: int, *, sides: Sequence[int], imbalance: float, seed: int
) -> tuple[Labels, Labels]:
    """Labels (0 to blocks - 1) of the rows and of the columns of `weights` (rows, columns), nonnegative.

    The columns fall into consecutive `sides` (sizes that add up to the columns): each of them, and the rows,
    are balanced by themselves, as `room_for` says.
    """
    cuts = np.cumsum(sides)[:-1]
    rows, columns = _spectral(weights, blocks, seed)
    best, most = (rows, columns), -1.0
    for _ in range(_ROUNDS):
        rows = _roomy(weights @ _one_hot(columns, blocks), imbalance)
        affinities = np.split(weights.T @ _one_hot(rows, blocks), cuts)
        columns = np.concatenate([_roomy(affinity, imbalance) for affinity in affinities])
        inside = float(np.concatenate(affinities)[np.arange(len(columns)), columns].sum())
        if inside <= most * (1 + 1e-12):
            break
        best, most = (rows, columns), inside
    return best


def room_for(count: int, blocks: int, imbalance: float) -> int:
    """How many of `count` a block may hold: at most (1 + imbalance) times an equal share, rounded up."""
    return ceil((1 + imbalance) * count / blocks - 1e-9)


def _spectral(weights: Array, blocks: int, seed: int) -> tuple[Labels, Labels]:
    rows, columns = (np.zeros(size, np.int64) for size in weights.shape)
    live_rows, live_columns = np.flatnonzero(weights.any(axis=1)), np.flatnonzero(weights.any(axis=0))
    count = min(blocks, live_rows.size, live_columns.size)
    if count < 2:
        return rows, columns
    u, _, v = singular_vectors(weights[np.ix_(live_rows, live_columns)], count, seed)
    nodes = np.concatenate([u, v.T])
    nodes /= np.maximum(np.linalg.norm(nodes, axis=1, keepdims=True), 1e-300)
    pivots = qr(nodes.T, mode="r", pivoting=True)[1][:count]
    turn, _, back = np.linalg.svd(nodes[pivots].T)
    labels = np.abs(nodes @ (turn @ back)).argmax(axis=1)
    rows[live_rows], columns[live_columns] = labels[: live_rows.size], labels[live_rows.size :]
    return rows, columns


def singular_vectors(live: Array, count: int, seed: int) -> tuple[Array, Array, Array]:
    """The `count` leading singular vectors and values of D1^-1/2 A D2^-1/2, as `svd` gives them.

    `live` is A, with neither a dead row nor a dead column. D1 and D2 hold the sums of its rows and columns,
    so the values lie between 0 and 1; as many are 1 as A has components.
    """
    scaled = live / np.sqrt(live.sum(axis=1))[:, None] / np.sqrt(live.sum(axis=0))
    if min(live.shape) <= max(_SMALL, 2 * count):
        u, values, v = np.linalg.svd(scaled, full_matrices=False)
        return u[:, :count], values[:count], v[:count]
    basis = np.random.default_rng(seed).standard_normal((live.shape[1], count + _SPARE))
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(scaled.T @ np.linalg.qr(scaled @ basis)[0])[0]
    u, values, turned = np.linalg.svd(scaled @ basis, full_matrices=False)
    return u[:, :count], values[:count], (turned @ basis.T)[:count]


def _roomy(affinity: Array, imbalance: float) -> Labels:
    """A block for each row of `affinity` (nodes, blocks): who loses most by the second best goes first."""
    count, blocks = affinity.shape
    labels = np.zeros(count, np.int64)
    if blocks == 1 or not count:
        return labels
    room = np.full(blocks, room_for(count, blocks, imbalance))
    ordered = np.partition(affinity, blocks - 2, axis=1)
    regret = ordered[:, -1] - ordered[:, -2]
    for node in np.argsort(-regret, kind="stable"):
        wanted = np.where(room > 0, affinity[node], -1.0)
        ties = np.flatnonzero(wanted == wanted.max())
        labels[node] = ties[room[ties].argmax()]
        room[labels[node]] -= 1
    return labels


def _one_hot(labels: Labels, blocks: int) -> Array:
    return np.eye(blocks)[labels]
