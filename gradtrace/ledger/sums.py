"""Totals over a ledger's entries, read chunk by chunk when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gradtrace.errors import CorruptLedgerError, StateError, StorageError
from gradtrace.ledger.array_format import chunk_elements
from gradtrace.ledger.array_reader import StoredArray
from gradtrace.ledger.commit import Commit
from gradtrace.ledger.commit_store import all_stand
from gradtrace.ledger.header import ACCUMULATORS
from gradtrace.ledger.layout_store import StoredLayout, opening_name
from gradtrace.ledger.paths import entry_prefix, layout_prefix, rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["Sums", "added", "entry_array"]

# Chunks of totals kept, at most 32 MiB each: enough that walking over the parameters of a ledger, all
# accumulators of one after the other, reads every chunk once, however many small parameters share it.
_KEPT = 8


class Sums:
    """Totals per parameter of all live entries, and opening balances; see `Ledger` for who it serves."""

    def __init__(
        self, storage: Storage, commits: Sequence[Commit], layouts: Mapping[int, StoredLayout]
    ) -> None:
        self._storage, self._layouts = storage, layouts
        self._commits = {
            number: [commit for commit in commits if commit.entry.layout == number] for number in layouts
        }
        self._total = lru_cache(_KEPT)(self._sum_chunk)
        self._opening = lru_cache(1)(self._opening_chunk)

    def total(self, accumulator: str, places: Mapping[int, int]) -> np.ndarray[Any, Any]:
        """Return the sum over all entries, float64 or int64, in the parameter's shape.

        Args:
            accumulator: which one.
            places: layout number to the parameter's index in that layout.
        """
        kind = np.float64 if ACCUMULATORS[accumulator].startswith("float") else np.int64
        whole: np.ndarray[Any, Any] | None = None
        for number, index in places.items():
            part = self._gather(number, index, kind, partial(self._total, accumulator, number))
            whole = part if whole is None else np.add(whole, part, out=whole)
        if whole is None:
            raise ValueError("a parameter without a place in any layout")
        return whole

    def opening(self, layout: int, index: int) -> np.ndarray[Any, Any]:
        """Return the float32 weights with which `layout` began, in the parameter's shape."""
        return self._gather(layout, index, np.float32, partial(self._opening, layout))

    def _gather(
        self,
        number: int,
        index: int,
        kind: type[np.generic],
        chunk_of: Callable[[int, int], np.ndarray[Any, Any]],
    ) -> np.ndarray[Any, Any]:
        layout = self._layouts[number].layout
        # Nothing stays unset: a layout's boxes tile each parameter.
        whole = np.empty(layout.parameters[index].shape, kind)
        for rank, piece in layout.pieces(index):
            if not piece.size:
                continue
            flat = whole.reshape(-1) if piece.shape == whole.shape else np.empty(piece.size, kind)
            length = chunk_elements(layout.size(rank))
            end = piece.offset + piece.size
            for chunk in range(piece.offset // length, -(-end // length)):
                first, last = max(piece.offset, chunk * length), min(end, (chunk + 1) * length)
                part = chunk_of(rank, chunk)[first - chunk * length : last - chunk * length]
                flat[first - piece.offset : last - piece.offset] = part
            if piece.shape != whole.shape:
                whole[piece.box] = flat.reshape(piece.shape)
        return whole

    def _sum_chunk(self, accumulator: str, number: int, rank: int, chunk: int) -> np.ndarray[Any, Any]:
        size = self._layouts[number].layout.size(rank)
        commits = self._commits[number]
        with self._lasting(commits):
            return added(
                (entry_array(self._storage, one, rank, accumulator, size).chunk(chunk) for one in commits),
                ACCUMULATORS[accumulator],
            )

    def _opening_chunk(self, number: int, rank: int, chunk: int) -> np.ndarray[Any, Any]:
        stored = self._layouts[number]
        name = opening_name(rank)
        with self._lasting(self._commits[number]):
            return StoredArray(
                self._storage,
                f"{layout_prefix(number)}/{name}",
                what=f"layout {number}, array {name}",
                size=stored.layout.size(rank),
                dtype="float32",
                digest=stored.opening[rank],
            ).chunk(chunk)

    @contextmanager
    def _lasting(self, commits: Iterable[Commit]) -> Iterator[None]:
        # A writer removes the commits of what it merged or voided before their data: where data is not what
        # it should be and a commit is gone, nothing is damaged.
        try:
            yield
        except (CorruptLedgerError, StorageError) as error:
            if all_stand(self._storage, commits):
                raise
            raise StateError(
                f"entries of {self._storage.location} were merged, voided or replaced since it was opened",
                remedy="open the ledger again",
            ) from error


def entry_array(storage: Storage, commit: Commit, rank: int, accumulator: str, size: int) -> StoredArray:
    """Open an array of the entry, of `size` elements, for reading."""
    entry, name = commit.entry, f"{rank_name(rank)}/{accumulator}"
    return StoredArray(
        storage,
        f"{entry_prefix(entry.begin, entry.end, entry.generation)}/{name}",
        what=f"entry {entry.begin}-{entry.end} (generation {entry.generation}), array {name}",
        size=size,
        dtype=ACCUMULATORS[accumulator],
        digest=commit.arrays[name],
    )


def added(parts: Iterable[np.ndarray[Any, Any]], dtype: str) -> np.ndarray[Any, Any]:
    """Return the sum of at least one array stored as `dtype`, taken one at a time: float64 or int64."""
    remaining = iter(parts)
    total = next(remaining).astype(np.float64 if dtype.startswith("float") else np.int64)
    for part in remaining:
        total += part
    return total
