"""Block-triangular order of a d -> d operator: strongly connected components, each after all it reads.

Take one node for each index, and an edge j -> i where output i keeps input j. Two indices are in one strongly
connected component where each reaches the other; between components there is no way back, so in topological
order all that is kept lies in diagonal blocks or below them (Dulmage and Mendelsohn, 1958, Coverings of
bipartite graphs, for operators with a full diagonal).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from gradtrace.errors import InvalidValueError
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["block_triangular", "strong_components"]


def strong_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """The strongly connected components of a square `mask` (outputs, inputs), each after all that it reads.

    Each is an ascending array of indices, and every index is in exactly one. Components that could come at
    the same time come in the order of their first indices.

    Raises:
        InvalidValueError: the mask is not square.
    """
    rows, columns = mask.shape
    if rows != columns:
        raise InvalidValueError("mask", expected="as many outputs as inputs", got=f"shape {mask.shape}")
    if not rows:
        return ()
    targets, sources = np.nonzero(mask)
    kept = csr_array((np.ones(len(sources), np.int8), (sources, targets)), shape=(rows, rows))
    count, labels = connected_components(kept, directed=True, connection="strong")
    first = np.full(count, rows)
    np.minimum.at(first, labels, np.arange(rows))
    before, behind = labels[sources], labels[targets]
    between = before != behind
    # Each pair once: the entries of a sum would count how many dependencies lie between two components.
    edges = csr_array(
        (np.ones(int(between.sum()), np.int32), (before[between], behind[between])), shape=(count, count)
    )
    edges.sum_duplicates()
    waits = np.bincount(edges.indices, minlength=count)
    order: list[NDArray[np.int64]] = []
    ready = np.flatnonzero(waits == 0)
    while ready.size:
        order.append(ready[np.argsort(first[ready])])
        after = np.concatenate([edges.indices[edges.indptr[one] : edges.indptr[one + 1]] for one in ready])
        np.subtract.at(waits, after, 1)
        ready = np.unique(after[waits[after] == 0])
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    return tuple(members[component] for component in np.concatenate(order))


def block_triangular(mask: NDArray[np.bool_], least: int = 1) -> tuple[SubOperator, ...]:
    """One sub-operator for each strongly connected component of a square `mask`, in topological order.

    It holds the component's outputs and all inputs that they keep: of its own and of earlier components.
    Components in a row are joined until they have `least` outputs. Dead rows and columns are left out.

    Raises:
        InvalidValueError: the mask is not square, or `least` is below 1.
    """
    if least < 1:
        raise InvalidValueError("least outputs of a block", expected="at least 1", got=repr(least))
    live = np.asarray(mask.any(axis=1))
    joined: list[list[NDArray[np.int64]]] = [[]]
    for component in strong_components(mask):
        if sum(map(len, joined[-1])) >= least:
            joined.append([])
        joined[-1].append(component[live[component]])
    blocks = [np.sort(np.concatenate(parts)) for parts in joined if sum(map(len, parts))]
    return tuple(SubOperator(np.flatnonzero(np.any(mask[block], axis=0)), block) for block in blocks)
