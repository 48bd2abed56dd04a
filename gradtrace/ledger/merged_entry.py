"""Adding neighbouring entries up into the one that takes their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from gradtrace.errors import StateError, UnsupportedFormatError
from gradtrace.ledger.adding import add_chunk, entry_array, total_dtype
from gradtrace.ledger.array_format import chunk_elements
from gradtrace.ledger.array_writer import write_chunks
from gradtrace.ledger.commit import ArrayDigest, Commit
from gradtrace.ledger.commit_check import check_commit
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.entry_store import write_entry
from gradtrace.ledger.header import Header
from gradtrace.ledger.layout_store import StoredLayout
from gradtrace.ledger.merged_details import merged_details
from gradtrace.ledger.paths import LARGEST_GENERATION, rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["write_merged"]


def write_merged(storage: Storage, header: Header, layout: StoredLayout, commits: Sequence[Commit]) -> Commit:
    """Write the entry that holds the sums of `commits`, neighbours of one layout; return its durable commit.

    Sums are added in float64 and stored in the accumulator's dtype; counts stay exact. At most two chunks
    of the sum are in memory at a time.

    Raises:
        CorruptLedgerError: a part is lost or altered.
        UnsupportedFormatError: a part holds arrays that this library does not know and would lose.
        StateError: a sum does not fit the accumulator's dtype, or no generation is left.
        StorageError: the disk failed.
    """
    ranks = range(len(layout.layout.ranks))
    known = {f"{rank_name(rank)}/{name}" for rank in ranks for name in header.accumulators}
    for commit in commits:
        check_commit(storage, header, commit, layout)
        if unknown := sorted(set(commit.arrays) - known):
            raise UnsupportedFormatError(
                f"entries of {storage.location} cannot be merged",
                expected="no arrays but those of this format",
                got=", ".join(unknown)[:200],
            )
    entries = [commit.entry for commit in commits]
    generation = 1 + max(entry.generation for entry in entries)
    if generation > LARGEST_GENERATION:
        raise StateError(
            "too many voids and merges in one ledger", expected=f"at most {LARGEST_GENERATION} generations"
        )
    merged = Entry(
        entries[0].begin,
        entries[-1].end,
        generation,
        entries[0].layout,
        sum(entry.windows for entry in entries),
        merged_details([entry.details for entry in entries]),
        reduce(add, (entry.sampling for entry in entries)),
    )

    def write(key: str, rank: int, accumulator: str) -> ArrayDigest:
        size, dtype = layout.layout.size(rank, accumulator), header.accumulators[accumulator]
        parts = _added_chunks(storage, commits, rank, accumulator, size, dtype)
        return write_chunks(storage, key, size, dtype, parts)

    return write_entry(storage, header.run_id, merged, layout, header.accumulators, write)


def _added_chunks(
    storage: Storage, commits: Sequence[Commit], rank: int, accumulator: str, size: int, dtype: str
) -> Iterator[np.ndarray[Any, Any]]:
    arrays = [entry_array(storage, commit, rank, accumulator, size) for commit in commits]
    length = chunk_elements(size)
    room = np.empty(min(length, size), total_dtype(accumulator))
    for chunk in range(-(-size // length)):
        total = room[: size - chunk * length]
        add_chunk(arrays, chunk, total)
        stored = _cast(total, dtype)
        if stored is None:
            first, last = commits[0].entry, commits[-1].entry
            raise StateError(
                f"entries {first.begin}-{last.end} of {storage.location} cannot be merged",
                expected=f"sums of {accumulator} that fit {dtype}",
                got=f"{total.min()} to {total.max()}",
                remedy="they stay as they are; nothing is lost",
            )
        yield stored


def _cast(total: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any] | None:
    """Return `total` in `dtype`, or None where that would lose more than a rounding."""
    if total.dtype.kind == "f":
        # What was infinite before may stay so.
        with np.errstate(over="ignore"):
            stored = total.astype(dtype)
        return stored if np.array_equal(np.isfinite(stored), np.isfinite(total)) else None
    limits = np.iinfo(dtype)
    return total.astype(dtype) if limits.min <= total.min() and total.max() <= limits.max else None
