"""Blocks of given costs on ranks, so that the slowest rank is done as early as can be.

Longest-processing-time first (Graham, 1969, Bounds on multiprocessing timing anomalies) is within 4/3 of the
best. Where it is not at the lower bound max(largest block, all / ranks), and the blocks are few, an integer
program (scipy's HiGHS) looks for a better one.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, csr_array, eye_array, kron

__all__ = ["balanced"]

# Larger programs can take minutes, where the greedy start is near the lower bound anyway. A limit on nodes
# and none on time: each rank may balance for itself, and all must come to the same.
_MOST_CHOICES = 128
_MOST_NODES = 200
_CLOSE = 1.005


def balanced(costs: NDArray[np.float64], ranks: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rank of each block of `costs` (blocks,), and what each of `ranks` ranks has to do (ranks,)."""
    rank_of = _longest_first(costs, ranks)
    loads = _loads(rank_of, costs, ranks)
    least = max(float(costs.max(initial=0.0)), float(costs.sum()) / ranks)
    if loads.max() > least * _CLOSE and costs.size * ranks <= _MOST_CHOICES:
        better = _programmed(costs, ranks)
        if better is not None:
            found = _loads(better, costs, ranks)
            if found.max() < loads.max():
                return better, found
    return rank_of, loads


def _loads(rank_of: NDArray[np.int64], costs: NDArray[np.float64], ranks: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(rank_of, weights=costs, minlength=ranks), np.float64)


def _longest_first(costs: NDArray[np.float64], ranks: int) -> NDArray[np.int64]:
    rank_of = np.zeros(costs.size, np.int64)
    free = [(0.0, rank) for rank in range(ranks)]
    heapify(free)
    for block in np.argsort(-costs, kind="stable"):
        load, rank = free[0]
        rank_of[block] = rank
        heapreplace(free, (load + float(costs[block]), rank))
    return rank_of


def _programmed(costs: NDArray[np.float64], ranks: int) -> NDArray[np.int64] | None:
    """Minimise t over x in {0, 1}: each block on one rank, no load above t; None where none is found."""
    blocks = costs.size
    order = np.argsort(-costs, kind="stable")
    scaled = costs[order] / costs.sum()
    # Variables: x[block, rank], row-major, then t.
    once = kron(eye_array(blocks), np.ones((1, ranks)))
    loads = kron(scaled[None, :], eye_array(ranks))
    matrix = block_array([[once, csr_array((blocks, 1))], [loads, csr_array(-np.ones((ranks, 1)))]])
    lower = np.concatenate([np.ones(blocks), np.full(ranks, -np.inf)])
    upper = np.concatenate([np.ones(blocks), np.zeros(ranks)])
    # Ranks are alike: the largest block may as well be on rank 0, the next on one of two, and so on.
    allowed = np.arange(ranks)[None, :] <= np.arange(blocks)[:, None]
    solved = milp(
        np.append(np.zeros(blocks * ranks), 1.0),
        integrality=np.append(np.ones(blocks * ranks), 0.0),
        bounds=Bounds(0.0, np.append(allowed.ravel().astype(np.float64), 1.0)),
        constraints=LinearConstraint(csr_array(matrix), lower, upper),
        options={"node_limit": _MOST_NODES, "mip_rel_gap": _CLOSE - 1},
    )
    if solved.x is None:
        return None
    rank_of = np.empty(blocks, np.int64)
    rank_of[order] = np.asarray(solved.x[:-1]).reshape(blocks, ranks).argmax(axis=1)
    return rank_of
