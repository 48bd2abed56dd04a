"""Totals over a ledger's entries, read chunk by chunk when asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from gradtrace.errors import CorruptLedgerError, StateError, StorageError
from gradtrace.ledger.adding import (
    SIDE_BY_SIDE,
    add_chunk,
    added_pieces,
    entry_array,
    piece_elements,
    total_dtype,
)
from gradtrace.ledger.array_format import chunk_elements
from gradtrace.ledger.array_reader import StoredArray
from gradtrace.ledger.chunk_memory import ChunkMemory
from gradtrace.ledger.commit import Commit
from gradtrace.ledger.commit_store import all_stand
from gradtrace.ledger.header import KNOWN
from gradtrace.ledger.layout_store import StoredLayout, opening_name
from gradtrace.ledger.paths import layout_prefix
from gradtrace.ledger.storage import Storage

__all__ = ["Place", "Sums"]

# Chunks of totals kept, at most 32 MiB each: enough that walking over the parameters of a ledger, all
# accumulators of one after the other, reads every chunk once, however many small parameters share it.
_KEPT = 8
# Chunks of one parameter read at once: reading, checking and adding mostly leave the interpreter free.
_THREADS = 4


class Place(NamedTuple):
    """Where a whole parameter lies in the flat arrays of one rank, as `layout` has them."""

    layout: int
    rank: int
    begin: int
    size: int

    @property
    def end(self) -> int:
        """One past its last element."""
        return self.begin + self.size

    def follows(self, other: Place) -> bool:
        """Whether it lies in the same arrays, behind the other."""
        return (self.layout, self.rank) == (other.layout, other.rank) and self.begin >= other.end


class Sums:
    """Totals per parameter of all live entries, and opening balances; see `Ledger` for who it serves."""

    def __init__(
        self, storage: Storage, commits: Sequence[Commit], layouts: Mapping[int, StoredLayout]
    ) -> None:
        self._storage, self._layouts = storage, layouts
        # Layouts alike are read as one: a resumed run's totals are rounded as those of an unbroken one.
        self._first = {
            number: next(first for first in layouts if layouts[first].layout == stored.layout)
            for number, stored in layouts.items()
        }
        together: dict[int, list[Commit]] = {first: [] for first in self._first.values()}
        for commit in commits:
            together[self._first[commit.entry.layout]].append(commit)
        self._commits = {number: together[first] for number, first in self._first.items()}
        self._kept = ChunkMemory(_KEPT)

    def total(self, accumulator: str, places: Mapping[int, int]) -> np.ndarray[Any, Any]:
        """Return the sum over all entries, float64 or int64, in the parameter's shape.

        Args:
            accumulator: which one.
            places: layout number to the parameter's index in that layout.
        """
        kind = total_dtype(accumulator)
        firsts = self._firsts(places)
        return _added(self._gather(number, index, accumulator, kind) for number, index in firsts)

    def input_total(self, accumulator: str, places: Mapping[int, int]) -> np.ndarray[Any, Any]:
        """Return the sum over all entries of one module's input moments, flat, float64.

        Args:
            accumulator: which one.
            places: layout number to the module's index among that layout's inputs.
        """
        firsts = self._firsts(places)
        return _added(self._input_part(accumulator, number, index) for number, index in firsts)

    def place(self, places: Mapping[int, int]) -> Place | None:
        """Return where the parameter lies, or None where it is not whole in the arrays of one rank."""
        firsts = list(self._firsts(places))
        if len(firsts) != 1:
            return None
        ((number, index),) = firsts
        pieces = self._layouts[number].layout.pieces(index)
        return (
            Place(number, pieces[0][0], pieces[0][1].offset, pieces[0][1].size) if len(pieces) == 1 else None
        )

    def rank_size(self, place: Place) -> int:
        """Return the length of the flat arrays that hold the place."""
        return self._layouts[place.layout].layout.size(place.rank, None)

    def pieces(
        self, place: Place, accumulator: str | None
    ) -> Callable[[int], Generator[np.ndarray[Any, Any]]]:
        """Return what yields the total of a chunk of the place's flat arrays, piece by piece.

        Of the dtype of the stored ones where there is one entry; None in the accumulator's place stands for
        the opening balance. A piece is good until the next one, and to be relied on once the last is there.
        """
        size, commits = self.rank_size(place), self._commits[place.layout]
        arrays = cache(partial(self._arrays, place.layout, place.rank, accumulator, size))
        kind: np.dtype[Any] = np.dtype(np.float32)
        if accumulator is not None:
            kind = np.dtype(KNOWN[accumulator] if len(commits) == 1 else total_dtype(accumulator))
        length = chunk_elements(size)

        def pieces(chunk: int) -> Generator[np.ndarray[Any, Any]]:
            with self._lasting(commits):
                if len(arrays()) <= SIDE_BY_SIDE:
                    yield from added_pieces(arrays(), chunk, kind)
                    return
                whole = np.empty(min(length, size - chunk * length), kind)
                add_chunk(arrays(), chunk, whole)
            for first in range(0, whole.size, piece_elements()):
                yield whole[first : first + piece_elements()]

        return pieces

    def opening(self, layout: int, index: int) -> np.ndarray[Any, Any]:
        """Return the float32 weights with which `layout` began, in the parameter's shape."""
        return self._gather(layout, index, None, np.float32)

    def _firsts(self, places: Mapping[int, int]) -> Iterator[tuple[int, int]]:
        return ((number, index) for number, index in places.items() if self._first[number] == number)

    def _input_part(self, accumulator: str, number: int, index: int) -> np.ndarray[Any, Any]:
        offset, size = self._layouts[number].layout.input_range(index, accumulator)
        part = np.empty(size, total_dtype(accumulator))
        with self._lasting(self._commits[number]):
            self._read(number, 0, accumulator, offset, part)
        return part

    def _gather(
        self, number: int, index: int, accumulator: str | None, kind: type[np.generic]
    ) -> np.ndarray[Any, Any]:
        layout = self._layouts[number].layout
        # Nothing stays unset: a layout's boxes tile each parameter.
        whole = np.empty(layout.parameters[index].shape, kind)
        for rank, piece in layout.pieces(index):
            if not piece.size:
                continue
            flat = whole.reshape(-1) if piece.shape == whole.shape else np.empty(piece.size, kind)
            with self._lasting(self._commits[number]):
                self._read(number, rank, accumulator, piece.offset, flat)
            if piece.shape != whole.shape:
                whole[piece.box] = flat.reshape(piece.shape)
        return whole

    def _read(
        self, number: int, rank: int, accumulator: str | None, offset: int, flat: np.ndarray[Any, Any]
    ) -> None:
        """Fill `flat` with what stands from element `offset` on, all of it of one parameter."""
        size = self._layouts[number].layout.size(rank, accumulator)
        length, end = chunk_elements(size), offset + flat.size
        arrays = cache(partial(self._arrays, number, rank, accumulator, size))
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="gradtrace-read") as pool:
            reading = []
            for chunk in range(offset // length, -(-end // length)):
                begin, stop = chunk * length, min((chunk + 1) * length, size)
                first, last = max(offset, begin), min(end, stop)
                part = flat[first - offset : last - offset]
                if part.size == stop - begin:
                    reading.append(pool.submit(add_chunk, arrays(), chunk, part))
                else:
                    self._copy(
                        number, rank, accumulator, chunk, part, slice(first - begin, last - begin), arrays
                    )
            for done in reading:
                done.result()

    def _copy(
        self,
        number: int,
        rank: int,
        accumulator: str | None,
        chunk: int,
        out: np.ndarray[Any, Any],
        part: slice,
        arrays: Callable[[], Sequence[StoredArray]],
    ) -> None:
        """Copy a part of one chunk, keep the chunk, and read the next one ahead where that is walked to."""
        size = self._layouts[number].layout.size(rank, accumulator)
        length = chunk_elements(size)

        def key(of: int) -> tuple[int, int, str | None, int]:
            return number, rank, accumulator, of

        def bytes_of(of: int) -> int:
            return (min((of + 1) * length, size) - of * length) * out.itemsize

        def fill(of: int, whole: np.ndarray[Any, Any]) -> None:
            add_chunk(arrays(), of, whole.view(out.dtype))

        if key(chunk - 1) in self._kept and (chunk + 1) * length < size:
            self._kept.begin(key(chunk + 1), size=bytes_of(chunk + 1), fill=partial(fill, chunk + 1))
        self._kept.copy(key(chunk), part, out, size=bytes_of(chunk), fill=partial(fill, chunk))

    def _arrays(self, number: int, rank: int, accumulator: str | None, size: int) -> list[StoredArray]:
        if accumulator is not None:
            return [
                entry_array(self._storage, commit, rank, accumulator, size)
                for commit in self._commits[number]
            ]
        name = opening_name(rank)
        return [
            StoredArray(
                self._storage,
                f"{layout_prefix(number)}/{name}",
                what=f"layout {number}, array {name}",
                size=size,
                dtype="float32",
                digest=self._layouts[number].opening[rank],
            )
        ]

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


def _added(parts: Iterable[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Add parts of one shape into the first, one at a time."""
    whole: np.ndarray[Any, Any] | None = None
    for part in parts:
        whole = part if whole is None else np.add(whole, part, out=whole)
    if whole is None:
        raise ValueError("nothing recorded: no place in any layout")
    return whole
