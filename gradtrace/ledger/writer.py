"""The one writer of a ledger: layouts, entries and voids, each durable as a whole before it exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from gradtrace.errors import (
    GradtraceError,
    InvalidValueError,
    MismatchError,
    StateError,
)
from gradtrace.ledger.array_writer import check_arrays, check_flat, write_array
from gradtrace.ledger.boundary import check_boundary
from gradtrace.ledger.commit import ArrayDigest, Commit
from gradtrace.ledger.commit_store import write_commit
from gradtrace.ledger.creation import check_destination, create_ledger
from gradtrace.ledger.details import check_details
from gradtrace.ledger.encoding import decode, encode, integer
from gradtrace.ledger.entry import Entry, Void
from gradtrace.ledger.entry_store import commit_parts, write_entry
from gradtrace.ledger.header import Header, appendable_header
from gradtrace.ledger.layout import Layout
from gradtrace.ledger.layout_store import StoredLayout, join_layout, write_layout
from gradtrace.ledger.live import live_commits
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.ledger.lock import WriterLock
from gradtrace.ledger.merged_entry import write_merged
from gradtrace.ledger.part import check_parts
from gradtrace.ledger.parts import complete_parts
from gradtrace.ledger.paths import LARGEST_GENERATION, LARGEST_LAYOUT
from gradtrace.ledger.recovery import recover, remove_dead
from gradtrace.ledger.retention import plan_merges
from gradtrace.ledger.sampling import ALL_STEPS, Sampling
from gradtrace.ledger.storage import Storage

__all__ = ["LedgerWriter", "check_destination"]


class LedgerWriter:
    """Writes a ledger; made by `create` or `reopen`, ended by `close` (or as a context manager).

    What a failing call leaves behind is invisible to readers and removed by the next call or the next writer.
    Not safe: calls from several threads at once.
    """

    def __init__(self, storage: Storage, lock: WriterLock, header: Header) -> None:
        self._storage, self._lock, self._header = storage, lock, header
        self._stored: dict[int, StoredLayout] = {}
        self._commits: list[Commit | Void] = []
        self._live: list[Commit] = []
        # Set while memory may not say what the disk does.
        self._doubtful = False

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        settings: Mapping[str, object],
        overwrite: bool = False,
        storage_options: StorageOptions = None,
        extra: Collection[str] = (),
    ) -> LedgerWriter:
        """Begin a new run's ledger at `path` and return its writer; parent folders are made.

        Raises:
            LedgerExistsError: a ledger is there and `overwrite` is not set, or anything else but an empty
                directory is there.
            LedgerBusyError: another process is writing it.
            InvalidValueError: `settings` are not JSON, or `extra`, the accumulators beside those that are
                always there, names what is none.
            StorageError: the disk failed; nothing is left behind.
        """
        storage = storage_at(path, storage_options)
        header = Header.new(settings, extra)
        return cls(storage, create_ledger(storage, header, overwrite=overwrite), header)

    @classmethod
    def reopen(cls, path: str | os.PathLike[str], *, storage_options: StorageOptions = None) -> LedgerWriter:
        """Go on with the ledger at `path`: take the lock and remove what was never committed.

        Raises:
            LedgerNotFoundError: there is none.
            UnsupportedFormatError: it is of a later format, also of a later minor number.
            CorruptLedgerError: its header, a commit or a layout is lost or altered.
            LedgerBusyError: another process is writing it.
            StorageError: the disk failed.
        """
        storage = storage_at(path, storage_options)
        appendable_header(storage)
        lock = storage.lock()
        try:
            # Read again under the lock: the run may have been replaced in between.
            writer = cls(storage, lock, appendable_header(storage))
            writer._settle()
            complete_parts(storage)
        except BaseException:
            lock.release()
            raise
        return writer

    @property
    def path(self) -> str:
        """Where the ledger lies: an absolute path or a URL."""
        return self._storage.location

    @property
    def run_id(self) -> str:
        """Names the run."""
        return self._header.run_id

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `create` was given."""
        return self._header.settings

    @property
    def accumulators(self) -> Mapping[str, str]:
        """The arrays that every entry must have, name to dtype."""
        return self._header.accumulators

    @property
    def end(self) -> int:
        """Committed steps: where the next entry begins."""
        return self._live[-1].entry.end if self._live else 0

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The live entries, in order of steps."""
        return tuple(commit.entry for commit in self._live)

    @property
    def layouts(self) -> Mapping[int, Layout]:
        """Every layout that `commit_entry` may name, by number."""
        return MappingProxyType({number: stored.layout for number, stored in sorted(self._stored.items())})

    @property
    def next_layout(self) -> int:
        """The number that the next layout will have: where the ranks write their opening balances."""
        return max(self._stored, default=-1) + 1

    @property
    def generation(self) -> int:
        """The generation that the next entry will have: where the ranks write their arrays."""
        return max((one.generation for one in self._commits if isinstance(one, Void)), default=0)

    def add_layout(self, layout: Layout, opening: Sequence[np.ndarray[Any, Any]]) -> int:
        """Write a layout and, per rank, the flat float32 weights at its beginning; return its number.

        Raises:
            InvalidValueError: `opening` does not fit `layout`.
            MismatchError: a parameter has another shape than in an earlier layout of this ledger.
            StorageError: the disk failed; the layout does not exist.
        """
        self._ready()
        if len(opening) != len(layout.ranks):
            raise InvalidValueError("opening", expected=f"{len(layout.ranks)} arrays", got=str(len(opening)))
        for rank, weights in enumerate(opening):
            check_flat(f"opening of rank {rank}", weights, "float32", layout.size(rank))
        return self._add_layout(layout, lambda number: write_layout(self._storage, number, layout, opening))

    def join_layout(self, layout: Layout, opening: Sequence[ArrayDigest]) -> int:
        """Do as `add_layout`, where each rank has written its opening balance with a `PartWriter`.

        Args:
            layout: whose number is `next_layout`.
            opening: the checksums of each rank's opening balance.
        """
        self._ready()
        check_parts([{"opening": digest} for digest in opening], {"opening": "float32"}, layout)
        return self._add_layout(layout, lambda number: join_layout(self._storage, number, layout, opening))

    def _add_layout(self, layout: Layout, write: Callable[[int], StoredLayout]) -> int:
        shapes = {
            info.name: info.shape for stored in self._stored.values() for info in stored.layout.parameters
        }
        for info in layout.parameters:
            if shapes.get(info.name, info.shape) != info.shape:
                raise MismatchError(
                    f"shape of {info.name!r}", expected=f"{shapes[info.name]} as before", got=str(info.shape)
                )
        number = self.next_layout
        if number > LARGEST_LAYOUT:
            raise StateError("too many layouts", expected=f"at most {LARGEST_LAYOUT + 1}")
        with self._undoing():
            self._stored[number] = write(number)
        return number

    def commit_entry(
        self,
        begin: int,
        end: int,
        *,
        layout: int,
        windows: int,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        details: Mapping[str, object],
        sampling: Sampling = ALL_STEPS,
    ) -> Entry:
        """Write the entry of the steps [begin, end) and return once it is durable.

        Args:
            begin: first step; must equal `self.end`.
            end: one past the last step.
            layout: number that `add_layout` returned; a layout of one rank.
            windows: windows summed into the arrays.
            arrays: one flat array for every accumulator of the ledger, of its dtype and the layout's size.
            details: JSON, per parameter in the layout's order; see docs/ledger-format.md.
            sampling: which part of the steps the sums were taken from.

        Raises:
            InvalidValueError: an argument does not fit; nothing was written.
            StorageError: the disk failed. The entry does not exist, unless `end` says so.
        """
        return self._commit(begin, end, layout, windows, (arrays,), details, sampling)

    def commit_parts(
        self,
        begin: int,
        end: int,
        *,
        layout: int,
        windows: int,
        parts: Sequence[Mapping[str, ArrayDigest]],
        details: Mapping[str, object],
        sampling: Sampling = ALL_STEPS,
    ) -> Entry:
        """Do as `commit_entry`, where each rank has written its arrays with a `PartWriter`.

        Args:
            begin: first step; must equal `self.end`.
            end: one past the last step.
            layout: number that `join_layout` returned.
            windows: windows summed into the arrays.
            parts: for each rank, the checksums of its arrays of the generation `generation`.
            details: JSON, per parameter in the layout's order; see docs/ledger-format.md.
            sampling: as there.
        """
        entry, stored = self._next_entry(begin, end, layout, windows, details, sampling)
        check_parts(parts, self._header.accumulators, stored.layout)
        with self._undoing():
            commit = commit_parts(self._storage, self.run_id, entry, stored, parts)
        return self._keep(commit)

    def _commit(
        self,
        begin: int,
        end: int,
        layout: int,
        windows: int,
        ranks: Sequence[Mapping[str, np.ndarray[Any, Any]]],
        details: Mapping[str, object],
        sampling: Sampling = ALL_STEPS,
    ) -> Entry:
        entry, stored = self._next_entry(begin, end, layout, windows, details, sampling)
        check_arrays(ranks, self._header.accumulators, stored.layout)
        with self._undoing():
            commit = write_entry(
                self._storage,
                self.run_id,
                entry,
                stored,
                self._header.accumulators,
                lambda key, rank, name: write_array(self._storage, key, ranks[rank][name]),
            )
        return self._keep(commit)

    def _next_entry(
        self,
        begin: int,
        end: int,
        layout: int,
        windows: int,
        details: Mapping[str, object],
        sampling: Sampling,
    ) -> tuple[Entry, StoredLayout]:
        self._ready()
        layout = integer(layout, "layout")
        if begin != self.end:
            raise InvalidValueError(
                "begin", expected=f"{self.end}, where the last entry ends", got=repr(begin)
            )
        stored = self._stored.get(layout)
        if stored is None:
            raise InvalidValueError(
                "layout",
                expected=f"one of {sorted(self._stored)}",
                got=repr(layout),
                remedy="call add_layout first",
            )
        plain = decode(encode(details))
        check_details(plain, len(stored.layout.parameters), len(stored.layout.inputs))
        return Entry(begin, end, self.generation, layout, windows, plain, sampling), stored

    def _keep(self, commit: Commit) -> Entry:
        self._commits.append(commit)
        self._live.append(commit)
        return commit.entry

    def void(self, begin: int) -> None:
        """Make every step from `begin` on not have happened; nothing where `begin` is the end.

        Raises:
            InvalidValueError: no entry ends at `begin`; the message names the nearest step where one does.
            StorageError: the disk failed; nothing is void, unless `end` says so.
        """
        self._ready()
        check_boundary("step to go back to", begin, self.entries)
        if begin == self.end:
            return
        generation = 1 + max(commit.generation for commit in self._commits)
        if generation > LARGEST_GENERATION:
            raise StateError("too many voids in one ledger", expected=f"at most {LARGEST_GENERATION}")
        void = Void(begin, self.end, generation)
        with self._undoing():
            write_commit(self._storage, self.run_id, void)
        self._commits.append(void)
        self._live = list(live_commits(self._commits))

    def merge(
        self, protected: Collection[int] | None = None, done: Callable[[Entry], object] | None = None
    ) -> int:
        """Join older entries, the wider the older they are, and return how many were joined.

        Which ones depends on the steps alone; see docs/ledger-format.md. Totals stay what they are, but that
        each joined sum is rounded once to the accumulator's dtype. What was joined or voided is removed from
        the disk.

        Args:
            protected: steps of checkpoints that may still be resumed; None for all that were ever saved, as
                the entries' details tell. An entry goes on ending there; from other steps but 0 and `end`,
                resuming may become impossible.
            done: called with each joined entry once it is durable and the old ones are removed.

        Raises:
            InvalidValueError: no entry ends at a protected step; the message names the nearest where one
                does.
            CorruptLedgerError: an entry to be joined is lost or altered; it stays as it is.
            UnsupportedFormatError: an entry to be joined holds arrays that this library does not know.
            StateError: a sum does not fit the accumulator's dtype; its entries stay as they are.
            StorageError: the disk failed. What is joined, `entries` says.
        """
        self._ready()
        merged = 0
        for run in plan_merges(self.entries, protected):
            first, last = run[0].begin, run[-1].end
            parts = [one for one in self._live if first <= one.entry.begin < last]
            with self._undoing():
                commit = write_merged(self._storage, self._header, self._stored[run[0].layout], parts)
                self._commits = [*self._commits, commit]
                self._remove_dead()
            merged += len(parts)
            if done is not None:
                done(commit.entry)
        with self._undoing():
            self._remove_dead()
        return merged

    def settle(self) -> None:
        """Find out again what exists and remove what no commit names, also what a `PartWriter` wrote.

        After a failure the next call does this by itself. Before parts are written it must be over.

        Raises:
            CorruptLedgerError: a commit or a layout is lost or altered; nothing was removed.
            StorageError: the disk failed.
        """
        self._doubtful = True
        self._ready()

    def close(self) -> None:
        """Release the ledger for the next writer. Closing twice is nothing."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "open" if self._lock.is_locked else "closed"
        return f"<LedgerWriter {self.path!r}: {self.end} steps in {len(self._live)} entries, {state}>"

    def _ready(self) -> None:
        if not self._lock.is_locked:
            raise StateError("the ledger is closed", remedy="LedgerWriter.reopen(path) goes on with it")
        if self._doubtful:
            self._settle()

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        # After a failure the disk says what exists: a commit may have landed although its put failed.
        try:
            yield
        except BaseException as failure:
            self._doubtful = True
            if isinstance(failure, Exception):
                try:
                    self._settle()
                except GradtraceError:
                    failure.add_note(
                        "what was not committed could not be removed; the next writer will do it"
                    )
            raise

    def _remove_dead(self) -> None:
        live = live_commits(self._commits)
        self._commits = list(remove_dead(self._storage, self._commits, live))
        self._live = list(live)

    def _settle(self) -> None:
        commits = recover(self._storage, self.run_id, self._stored)
        self._commits, self._live, self._doubtful = list(commits), list(live_commits(commits)), False
