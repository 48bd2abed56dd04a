"""Adding the same chunk of several entries up, a block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from gradtrace.ledger.array_reader import StoredArray
from gradtrace.ledger.commit import Commit
from gradtrace.ledger.header import KNOWN
from gradtrace.ledger.paths import entry_prefix, rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["add_chunk", "entry_array", "total_dtype"]

# Entries read side by side: each holds a file open, or on an object store a chunk of up to 16 MiB.
_TOGETHER = 4


def add_chunk(arrays: Sequence[StoredArray], number: int, out: np.ndarray[Any, Any]) -> None:
    """Set `out` to the sum of chunk `number` of one array or more of equal size and dtype, added in order.

    Holds a few BLOCKs of bytes beside `out`; what stands in `out` after an error means nothing.

    Raises:
        CorruptLedgerError: a chunk is lost, truncated or altered.
        StorageError: the disk refuses to read one.
    """
    for first in range(0, len(arrays), _TOGETHER):
        with ExitStack() as stack:
            streams = [
                stack.enter_context(closing(array.blocks(number)))
                for array in arrays[first : first + _TOGETHER]
            ]
            place = 0
            for blocks in zip(*streams, strict=True):
                part = out[place : place + blocks[0].size]
                for position, block in enumerate(blocks):
                    if first == position == 0:
                        np.copyto(part, block)
                    else:
                        np.add(part, block, out=part)
                place += part.size


def entry_array(storage: Storage, commit: Commit, rank: int, accumulator: str, size: int) -> StoredArray:
    """Open an array of the entry, of `size` elements, for reading."""
    entry, name = commit.entry, f"{rank_name(rank)}/{accumulator}"
    return StoredArray(
        storage,
        f"{entry_prefix(entry.begin, entry.end, entry.generation)}/{name}",
        what=f"entry {entry.begin}-{entry.end} (generation {entry.generation}), array {name}",
        size=size,
        dtype=KNOWN[accumulator],
        digest=commit.arrays[name],
    )


def total_dtype(accumulator: str) -> type[np.float64] | type[np.int64]:
    """Return the dtype in which an accumulator's totals are added."""
    return np.float64 if KNOWN[accumulator].startswith("float") else np.int64
