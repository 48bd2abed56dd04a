"""Exact blocks: the connected components of the bipartite graph of inputs and outputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from gradtrace.structure.sub_operator import SubOperator

__all__ = ["components"]


def components(mask: NDArray[np.bool_]) -> tuple[SubOperator, ...]:
    """One sub-operator per component of `mask` (outputs, inputs), in the order of their first outputs.

    Every kept dependency lies in exactly one, and no two share an input or an output. Dead rows and columns
    are components without an edge and are left out.
    """
    rows, columns = mask.shape
    kept = csr_array(mask)
    # Outputs are the nodes 0 .. rows - 1, inputs follow; only output rows hold edges.
    indptr = np.concatenate([kept.indptr, np.full(columns, kept.indptr[-1], dtype=kept.indptr.dtype)])
    graph = csr_array(
        (np.ones(kept.nnz, dtype=np.int8), kept.indices + rows, indptr),
        shape=(rows + columns, rows + columns),
    )
    _, labels = connected_components(graph, directed=True, connection="weak")
    live_outputs = np.flatnonzero(mask.any(axis=1))
    live_inputs = np.flatnonzero(mask.any(axis=0))
    found, first, of_output = np.unique(labels[live_outputs], return_index=True, return_inverse=True)
    place = np.empty(len(found), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(found))
    of_input = np.searchsorted(found, labels[rows + live_inputs])
    return tuple(
        SubOperator(inputs, outputs)
        for inputs, outputs in zip(
            _split(live_inputs, place[of_input], len(found)),
            _split(live_outputs, place[of_output], len(found)),
            strict=True,
        )
    )


def _split(indices: NDArray[np.int64], group: NDArray[np.int64], groups: int) -> list[NDArray[np.int64]]:
    order = np.argsort(group, kind="stable")
    bounds = np.cumsum(np.bincount(group, minlength=groups))
    return np.split(indices[order], bounds)[:groups]
