"""Groups of outputs that each gather their own inputs: they cover any mask and run as dense products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["identical_rows", "row_groups"]


def identical_rows(mask: NDArray[np.bool_]) -> tuple[SubOperator, ...]:
    """Outputs of `mask` (outputs, inputs) with identical input sets, grouped: none holds anything dropped.

    Groups come in the order of their first outputs; dead rows are left out.
    """
    live = np.flatnonzero(mask.any(axis=1))
    if not live.size:
        return ()
    packed = np.packbits(mask[live], axis=1)
    # A row of bytes as one opaque value: unique over those is far faster than unique over an axis.
    values = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, group = np.unique(values, return_index=True, return_inverse=True)
    bounds = np.cumsum(np.bincount(group))[:-1]
    members = np.split(live[np.argsort(group, kind="stable")], bounds)
    return tuple(
        SubOperator(np.flatnonzero(mask[members[number][0]]), members[number]) for number in np.argsort(first)
    )


def row_groups(mask: NDArray[np.bool_], size: int) -> tuple[SubOperator, ...]:
    """The live outputs of `mask` in natural order, in as few and as equal groups of at most `size` as can be.

    A group's inputs are all that any of its outputs keeps, so dropped dependencies can lie inside it.

    Raises:
        InvalidValueError: `size` is below 1.
    """
    if size < 1:
        raise InvalidValueError("row group size", expected="at least 1", got=repr(size))
    live = np.flatnonzero(mask.any(axis=1))
    if not live.size:
        return ()
    members = np.array_split(live, -(-live.size // size))
    starts = np.cumsum([0] + [len(group) for group in members[:-1]])
    unions = np.logical_or.reduceat(mask[live], starts, axis=0)
    return tuple(
        SubOperator(np.flatnonzero(union), outputs) for union, outputs in zip(unions, members, strict=True)
    )
