"""Row groups of outputs that keep similar inputs, so that each group gathers less than in natural order.

What a group costs is its outputs times the union of their inputs. With equal groups, the sum of the unions is
the connectivity of a hypergraph partition (outputs are the vertices, inputs the nets; Catalyurek and Aykanat,
1999, Hypergraph-partitioning-based decomposition for parallel sparse-matrix vector multiplication).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.structure.balanced_blocks import singular_vectors
from gradtrace.structure.hypergraph import partitioned_rows
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["METHODS", "growing_groups", "similar_row_groups"]

Mask = NDArray[np.bool_]
Groups = list[NDArray[np.int64]]


def similar_row_groups(
    mask: Mask, size: int, *, by: str = "greedy", seed: int = 0
) -> tuple[SubOperator, ...]:
    """The live outputs of `mask` (outputs, inputs) in as few groups of about `size` as can be, by similarity.

    Args:
        mask: what is kept; every kept dependency lies in exactly one group.
        size: outputs of a group, at least 1.
        by: "greedy" grows one group after the other from its sparsest row, each time by the row that
            brings the fewest new inputs; "fiedler" sorts by the second singular vector; "hypergraph"
            asks Mt-KaHyPar (extra `partition`), whose groups may be 3% larger.
        seed: of what is drawn at random; the same arguments give the same groups.

    Raises:
        InvalidValueError: `size` is below 1.
        UnknownNameError: there is no such method.
        UnsupportedError: the method needs a package that is not installed.
    """
    if size < 1:
        raise InvalidValueError("row group size", expected="at least 1", got=repr(size))
    if by not in METHODS:
        raise UnknownNameError(f"no method '{by}' for row groups", expected=", ".join(METHODS))
    live = np.flatnonzero(mask.any(axis=1))
    if not live.size:
        return ()
    kept = mask[live]
    groups = [np.sort(members) for members in METHODS[by](kept, size, seed) if members.size]
    return tuple(SubOperator(np.flatnonzero(kept[group].any(axis=0)), live[group]) for group in groups)


def growing_groups(kept: Mask, size: int) -> Iterator[NDArray[np.int64]]:
    """Groups of the rows of `kept`, sparsest first; the first tells whether going on is worthwhile."""
    columns = np.ascontiguousarray(kept.T).view(np.uint8)
    support = kept.sum(axis=1)
    free = np.ones(len(kept), dtype=np.bool_)
    count = -(-len(kept) // size)
    most = kept.shape[1] + 1
    for number in range(count):
        members: list[int] = []
        gathered = np.zeros(kept.shape[1], dtype=np.bool_)
        # Of the rows that bring as few new inputs, the one that shares most; the first has nothing to share.
        rank = np.where(free, support * most, np.iinfo(np.int64).max)
        row = int(rank.argmin())
        rank = np.where(free, support * most - support, rank)
        for _ in range(len(kept) * (number + 1) // count - len(kept) * number // count):
            row = int(rank.argmin()) if members else row
            members.append(row)
            free[row], rank[row] = False, np.iinfo(np.int64).max
            new = np.flatnonzero(kept[row] & ~gathered)
            if new.size:
                gathered[new] = True
                rank[free] -= columns[new].sum(axis=0, dtype=np.int64)[free] * most
        yield np.array(members)


def _greedy(kept: Mask, size: int, seed: int) -> Groups:
    return list(growing_groups(kept, size))


def _fiedler(kept: Mask, size: int, seed: int) -> Groups:
    vectors, _, _ = singular_vectors(kept[:, kept.any(axis=0)].astype(np.float64), 2, seed)
    order = np.argsort(vectors[:, -1], kind="stable") if vectors.shape[1] > 1 else np.arange(len(kept))
    return np.array_split(order, -(-len(kept) // size))


def _hypergraph(kept: Mask, size: int, seed: int) -> Groups:
    labels = partitioned_rows(kept, -(-len(kept) // size), seed)
    return [np.flatnonzero(labels == block) for block in range(int(labels.max()) + 1)]


METHODS: Mapping[str, Callable[[Mask, int, int], Groups]] = MappingProxyType(
    {"greedy": _greedy, "fiedler": _fiedler, "hypergraph": _hypergraph}
)
"""Name -> (rows that keep something, size, seed) -> members of each group."""
