"""Totals block by block, from a ledger that can be walked or from records of any kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["total_blocks"]


def total_blocks(
    ledger: Ledger, names: Sequence[str], needs: Sequence[str]
) -> Iterator[tuple[str, slice, Mapping[str, NDArray[Any]]]]:
    """Name, part and totals of each block, flat; see `gradtrace.ledger.walk`."""
    if hasattr(ledger, "walk"):
        yield from ledger.walk(names, needs)
        return
    for name in names:
        totals = {one: np.asarray(getattr(ledger[name], one)).reshape(-1) for one in needs}
        yield name, slice(0, math.prod(ledger[name].shape)), totals
