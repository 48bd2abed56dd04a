"""An order of hidden units in which sub-operators read and write consecutive ones, where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRIED", "consecutive", "unit_order"]

TRIED = 16  # a residual stream has hundreds of layers


def unit_order(
    members: Sequence[Sequence[NDArray[np.int64]]], size: int, *, unit: int = 1, blocks: int = 1
) -> NDArray[np.int64]:
    """The old index of each of `size` hidden units, in their new order.

    `members`: for each layer at these units, the units that each of its sub-operators reads or writes.
    `unit` neighbours move together and stay in their order; none leaves its block of `size // blocks`. Units
    are sorted by the sub-operators they belong to, of one layer first and of the others next; as the first
    those layers are tried of which most is gathered, at most TRIED of them. The natural order stays unless
    another leaves less to be gathered by index.
    """
    labels = [_labels(lists, size)[::unit] for lists in members]
    block = np.arange(size // unit) // (size // unit // blocks)
    best = np.arange(size, dtype=np.int64)
    least = _gathered(members, best)
    most = sorted(range(len(labels)), key=lambda layer: -_gathered([members[layer]], best))
    for first in most[:TRIED]:
        keys = [labels[first], *labels[:first], *labels[first + 1 :]]
        units = np.lexsort((*keys[::-1], block))  # the last key counts most
        order = (units[:, None] * unit + np.arange(unit)[None, :]).reshape(-1)
        gathered = _gathered(members, order)
        if gathered < least:
            best, least = order, gathered
    return best


def consecutive(indices: NDArray[np.int64]) -> bool:
    """Whether it is one run of ascending neighbours."""
    return bool((np.diff(indices) == 1).all())


def _labels(lists: Sequence[NDArray[np.int64]], size: int) -> NDArray[np.int64]:
    """A number for each unit: equal for those in the same sub-operators; in none comes last."""
    inside = np.zeros((size, len(lists)), dtype=np.bool_)
    for number, indices in enumerate(lists):
        inside[indices, number] = True
    # So that sorting puts units of the first sub-operator first.
    packed = np.packbits(~inside, axis=1)
    _, found = np.unique(packed, axis=0, return_inverse=True)
    labels: NDArray[np.int64] = found.reshape(-1).astype(np.int64)
    return labels


def _gathered(members: Sequence[Sequence[NDArray[np.int64]]], order: NDArray[np.int64]) -> int:
    """How many units would still be addressed by an index."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    lists = [np.sort(place[indices]) for layer in members for indices in layer]
    return sum(len(indices) for indices in lists if not consecutive(indices))
