"""The ways to run a layer that keep exactly what its mask keeps; the planner takes the fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtrace.structure.balanced_blocks import singular_vectors
from gradtrace.structure.block_triangular import block_triangular
from gradtrace.structure.coclusters import coclusters
from gradtrace.structure.components import components
from gradtrace.structure.row_groups import identical_rows, row_groups
from gradtrace.structure.similar_rows import growing_groups, similar_row_groups
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.trimmed import trimmed

__all__ = ["Candidate", "candidates"]

_GROUP_SIZES = (16, 64, 128, 256)
_TRIANGLE_OUTPUTS = 64
# What a search costs grows faster than the mask: some 3 seconds of one core here.
_MOST_SEARCHED = 1 << 24
_MOST_BLOCKS = 16
_TOGETHER = 0.7  # a singular value from which its vector tells blocks; noise has some 0.1 to 0.5
_FULL = 0.6  # density that two balanced blocks cannot have
_GAIN = 0.9  # share of the work in natural order from which a search has found nothing


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to run a layer: the kind that a plan records, its words for a reader, and the sub-operators."""

    choice: str
    words: str
    sub_operators: tuple[SubOperator, ...]


def candidates(mask: NDArray[np.bool_]) -> Iterator[Candidate]:
    """Every kind of sub-operators that covers `mask` (outputs, inputs), the simplest first.

    Searches stop where their first step shows that nothing is to be found, and are left out for masks of
    more than 2^24 dependencies; they need nothing but scipy. A mask of 4096 x 1024 takes about a second.
    """
    yield Candidate("trimmed", "dead rows and columns removed", trimmed(mask))
    blocks = components(mask)
    if len(blocks) > 1:
        yield Candidate("components", f"{len(blocks)} exact blocks", blocks)
    live = int(mask.any(axis=1).sum())
    identical = identical_rows(mask)
    # With hardly two rows alike this is one product per row, and as many objects: no candidate.
    if 1 < len(identical) <= max(live // 4, 2):
        yield Candidate("row groups", f"{len(identical)} groups of identical rows", identical)
    natural = {size: row_groups(mask, size) for size in _GROUP_SIZES if live > size}
    for size, parts in natural.items():
        if not _same(parts, identical):
            yield Candidate("row groups", f"row groups of {size}", parts)
    if mask.size <= _MOST_SEARCHED:
        yield from _triangle(mask)
        yield from _blocks(mask)
        for size, parts in natural.items():
            yield from _similar(mask, size, sum(part.size for part in parts))


def _same(parts: tuple[SubOperator, ...], others: tuple[SubOperator, ...]) -> bool:
    """Whether the groups are alike, in whatever order."""
    if len(parts) != len(others):
        return False
    return {part.outputs.tobytes() for part in parts} == {other.outputs.tobytes() for other in others}


def _triangle(mask: NDArray[np.bool_]) -> Iterator[Candidate]:
    if mask.shape[0] == mask.shape[1]:
        parts = block_triangular(mask, _TRIANGLE_OUTPUTS)
        if len(parts) > 1:
            yield Candidate("block-triangular", f"a triangle of {len(parts)} blocks", parts)


def _blocks(mask: NDArray[np.bool_]) -> Iterator[Candidate]:
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    if min(rows.sum(), columns.sum()) < 2 or mask.sum() > _FULL * rows.sum() * columns.sum():
        return
    live = mask[np.ix_(rows, columns)].astype(np.float64)
    count = int((singular_vectors(live, _MOST_BLOCKS + 1, 0)[1] >= _TOGETHER).sum())
    if 2 <= count <= _MOST_BLOCKS:
        found = coclusters(mask, count, imbalance=1.0)
        parts = found.covering(mask)
        if found.residual(mask).any() and sum(part.size for part in parts) < _GAIN * live.size:
            yield Candidate("co-clusters", f"{count} blocks and what lies between them", parts)


def _similar(mask: NDArray[np.bool_], size: int, natural: int) -> Iterator[Candidate]:
    kept = mask[mask.any(axis=1)]
    if kept.sum() >= _GAIN * natural:
        return
    first = next(growing_groups(kept, size))
    # Each group is easier to fill than the next, so where the first gains nothing none does.
    if kept[first].any(axis=0).sum() * len(kept) < _GAIN * natural:
        parts = similar_row_groups(mask, size)
        if sum(part.size for part in parts) < _GAIN * natural:
            yield Candidate("row groups", f"row groups of {size} by similarity", parts)
