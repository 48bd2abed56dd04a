"""Partitions by Mt-KaHyPar (Gottesbueren et al., 2024, Scalable High-Quality Hypergraph Partitioning).

Always with its deterministic preset and on one thread: the same arguments give the same partition.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import UnsupportedError

__all__ = ["partitioned_graph", "partitioned_rows", "partitioner"]

_IMBALANCE = 0.03
_WEIGHTS = 1000  # the partitioner counts in integers


def partitioned_rows(kept: NDArray[np.bool_], blocks: int, seed: int) -> NDArray[np.int64]:
    """The block of each row of `kept` (rows, columns): blocks that touch as few columns as is found, in sum.

    Raises:
        UnsupportedError: mtkahypar is not installed.
    """
    if blocks < 2 or len(kept) < 2:
        return np.zeros(len(kept), np.int64)
    kahypar, start = partitioner()
    nets = [np.flatnonzero(column).tolist() for column in kept.T]
    nets = [net for net in nets if len(net) > 1]
    context = _context(start, kahypar, blocks, _IMBALANCE, kahypar.Objective.KM1, seed)
    graph = start.create_hypergraph(context, len(kept), len(nets), nets)
    return np.array(graph.partition(context).get_partition(), dtype=np.int64)


def partitioned_graph(
    weights: NDArray[np.float64], blocks: int, imbalance: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The blocks of rows and of columns of `weights` (rows, columns), at most 1, with little weight between.

    Each side has half of the weight that is balanced, but the two are balanced together, not each by itself.

    Raises:
        UnsupportedError: mtkahypar is not installed.
    """
    rows, columns = weights.shape
    if blocks < 2 or min(rows, columns) < 1:
        return np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    kahypar, start = partitioner()
    whole = np.rint(weights * _WEIGHTS).astype(np.int64)
    sources, targets = np.nonzero(whole)
    context = _context(start, kahypar, blocks, max(imbalance, _IMBALANCE), kahypar.Objective.CUT, seed)
    graph = start.create_graph(
        context,
        rows + columns,
        len(sources),
        list(zip(sources.tolist(), (targets + rows).tolist(), strict=True)),
        [columns] * rows + [rows] * columns,
        whole[sources, targets].tolist(),
    )
    labels = np.array(graph.partition(context).get_partition(), dtype=np.int64)
    return labels[:rows], labels[rows:]


def _context(start: Any, kahypar: Any, blocks: int, imbalance: float, objective: Any, seed: int) -> Any:
    context = start.context_from_preset(kahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(blocks, imbalance, objective)
    context.logging = False
    kahypar.set_seed(seed)
    return context


@lru_cache(maxsize=1)
def partitioner() -> tuple[Any, Any]:
    """The module mtkahypar and its initializer, of which a process has one."""
    try:
        import mtkahypar
    except ImportError as error:
        raise UnsupportedError(
            "partitions by hypergraph need mtkahypar", remedy="pip install 'gradtrace[partition]'"
        ) from error
    return mtkahypar, mtkahypar.initialize(1, False)
