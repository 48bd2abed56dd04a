"""Adding the same chunk of several entries up, a block at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from gradtrace.ledger import array_reader
from gradtrace.ledger.array_reader import StoredArray
from gradtrace.ledger.commit import Commit
from gradtrace.ledger.header import KNOWN
from gradtrace.ledger.paths import entry_prefix, rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["SIDE_BY_SIDE", "add_chunk", "added_pieces", "entry_array", "piece_elements", "total_dtype"]

# Entries read side by side: each holds a file open, or on an object store a chunk of up to 16 MiB.
_TOGETHER = 4
# The same where the sums are not kept either, so that no chunk of them need be held.
SIDE_BY_SIDE = 16


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


def added_pieces(
    arrays: Sequence[StoredArray], number: int, kind: np.dtype[Any]
) -> Generator[np.ndarray[Any, Any]]:
    """Yield the sum of chunk `number` of the arrays, piece by piece, none empty; each overwrites the last.

    Raises what `add_chunk` raises, at last at the end: only then may what was yielded be relied on.
    """
    total = np.empty(piece_elements() if len(arrays) > 1 else 0, kind)
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(array.blocks(number))) for array in arrays]
        for blocks in zip(*streams, strict=True):
            part = blocks[0]
            if len(blocks) > 1:
                part = total[: part.size]
                np.copyto(part, blocks[0])
            for block in blocks[1:]:
                np.add(part, block, out=part)
            if part.size:
                yield part


def piece_elements() -> int:
    """Elements of a piece: whatever is stored takes four bytes."""
    return array_reader.BLOCK // 4


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
