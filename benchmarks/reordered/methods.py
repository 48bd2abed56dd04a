"""Every way to reorder a mask, by name, and what the search for it took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradtrace.structure import similar_rows
from gradtrace.structure.block_triangular import block_triangular
from gradtrace.structure.coclusters import METHODS, coclusters
from gradtrace.structure.components import components
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.trimmed import trimmed

__all__ = ["NATURAL", "Found", "found"]

SIZES = (16, 64)
BLOCKS = 4
NATURAL = tuple(f"natural {size}" for size in SIZES)
Mask = NDArray[np.bool_]
Parts = tuple[SubOperator, ...]


class Found(NamedTuple):
    """Sub-operators that keep `mask`, and the seconds of the search."""

    parts: Parts
    mask: Mask
    seconds: float


def found(mask: Mask) -> dict[str, Found]:
    """What each method makes of `mask`; "dropped" keeps less of it than the others."""
    made = {}
    for name, method in _methods(mask):
        start = perf_counter()
        parts, kept = method()
        seconds = perf_counter() - start
        if parts:
            made[name] = Found(parts, kept, seconds)
    return made


def _methods(mask: Mask) -> Iterator[tuple[str, Callable[[], tuple[Parts, Mask]]]]:
    yield "trimmed", lambda: (trimmed(mask), mask)
    yield "components", lambda: (components(mask), mask)
    if mask.shape[0] == mask.shape[1]:
        yield "block-triangular", lambda: (block_triangular(mask, SIZES[-1]), mask)
    for size in SIZES:
        yield f"natural {size}", partial(_natural, mask, size)
        for by in similar_rows.METHODS:
            yield f"{by} {size}", partial(_similar, mask, size, by)
    for by in METHODS:
        yield f"co-clusters, {by}", partial(_covering, mask, by)
    yield "co-clusters, residual dropped", partial(_dropping, mask)


def _natural(mask: Mask, size: int) -> tuple[Parts, Mask]:
    return row_groups(mask, size), mask


def _similar(mask: Mask, size: int, by: str) -> tuple[Parts, Mask]:
    return similar_rows.similar_row_groups(mask, size, by=by), mask


def _covering(mask: Mask, by: str) -> tuple[Parts, Mask]:
    return coclusters(mask, BLOCKS, by=by).covering(mask), mask


def _dropping(mask: Mask) -> tuple[Parts, Mask]:
    inside = coclusters(mask, BLOCKS).inside(mask)
    return components(inside), inside
