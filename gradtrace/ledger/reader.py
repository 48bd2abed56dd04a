"""A ledger as a mapping from parameter name to what was recorded of it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gradtrace.errors import CorruptLedgerError, EmptyLedgerError, InvalidValueError, UnknownNameError
from gradtrace.ledger.commit import Commit
from gradtrace.ledger.commit_check import check_commit
from gradtrace.ledger.commit_store import all_stand, read_commits
from gradtrace.ledger.details import Update
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.header import Header, read_header
from gradtrace.ledger.input_record import InputRecord, InputRecords
from gradtrace.ledger.inputs import InputInfo
from gradtrace.ledger.layout_store import StoredLayout, read_layout
from gradtrace.ledger.live import live_commits
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.ledger.parameter import ParameterInfo
from gradtrace.ledger.record import ParameterRecord
from gradtrace.ledger.reopening import Address, reopened
from gradtrace.ledger.storage import Storage
from gradtrace.ledger.sums import Sums
from gradtrace.ledger.walk import Block, walk

__all__ = ["InputRecord", "Ledger", "ParameterRecord", "Update"]


class Ledger(Mapping[str, ParameterRecord]):
    """The committed entries of a ledger, as they were when it was opened; opened by `Ledger.open`.

    Iterates over canonical names in the order of first recording; `[]` and `in` also know the aliases of tied
    weights. Takes no lock: a writer may go on meanwhile. Entries that are merged or voided after the ledger
    was opened are removed in time: reading them then is a StateError that asks to open it again. A pickle of
    it, for another process, says where it lies, the storage options included: it is nothing to keep.
    """

    def __init__(
        self,
        storage: Storage,
        header: Header,
        commits: tuple[Commit, ...],
        layouts: Mapping[int, StoredLayout],
    ) -> None:
        self._path, self._header = storage.location, header
        self._storage, self._commits, self._layouts = storage, commits, layouts
        self._partial = False
        self._storage_options: StorageOptions = None
        self._entries = tuple(commit.entry for commit in commits)
        self._sums = sums = Sums(storage, commits, layouts)
        infos: dict[str, ParameterInfo] = {}
        places: dict[str, dict[int, int]] = {}
        self._aliases: dict[str, str] = {}
        for number, stored in layouts.items():
            for index, info in enumerate(stored.layout.parameters):
                known = infos.get(info.name, info)
                if known.shape != info.shape:
                    raise CorruptLedgerError(
                        f"{storage.location}: parameter {info.name!r} changes shape in layout {number}",
                        expected=str(known.shape),
                        got=str(info.shape),
                    )
                infos[info.name] = info
                places.setdefault(info.name, {})[number] = index
                self._aliases |= dict.fromkeys(info.aliases, info.name)
        modules: dict[str, InputInfo] = {}
        spots: dict[str, dict[int, int]] = {}
        for number, stored in layouts.items():
            for index, inputs in enumerate(stored.layout.inputs):
                if modules.setdefault(inputs.module, inputs) != inputs:
                    raise CorruptLedgerError(
                        f"{storage.location}: inputs of {inputs.module!r} change in layout {number}"
                    )
                spots.setdefault(inputs.module, {})[number] = index
        self._inputs = InputRecords(
            (
                name,
                InputRecord(
                    inputs,
                    sums=sums,
                    accumulators=header.accumulators,
                    entries=self._entries,
                    places=spots[name],
                ),
            )
            for name, inputs in modules.items()
        )
        self._records = {
            name: ParameterRecord(
                info, sums=sums, accumulators=header.accumulators, entries=self._entries, places=places[name]
            )
            for name, info in infos.items()
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, storage_options: StorageOptions = None) -> Ledger:
        """Open the ledger at `path` for reading.

        Args:
            path: where it lies; also s3://, gs:// and az:// (extra `cloud`).
            storage_options: how to reach an object store, such as `region` or `endpoint`; what is not given
                comes from the environment.

        Raises:
            LedgerNotFoundError: there is none.
            UnsupportedFormatError: it is of a format that this library cannot read.
            EmptyLedgerError: it holds no committed entry.
            CorruptLedgerError: its header, a commit or a layout is lost or altered.
            StorageError: the disk refuses to read it.
        """
        storage = storage_at(path, storage_options)
        header = read_header(storage)
        while True:
            commits = live_commits(read_commits(storage, header.run_id))
            if not commits:
                raise EmptyLedgerError(f"the ledger {storage.location} holds no committed entry")
            try:
                opened = cls(storage, header, commits, _layouts_of(storage, header, commits))
                opened._storage_options = storage_options
                return opened
            except CorruptLedgerError:
                # A layout goes after the last commit that names it: these commits may be history by now.
                if all_stand(storage, commits):
                    raise

    def between(self, begin: int = 0, end: int | None = None) -> Ledger:
        """The part that was recorded in the steps [begin, end): totals are over these alone.

        A parameter that was not recorded in them is not in it; opening balances stay as they are.

        Raises:
            InvalidValueError: no entry begins at `begin`, none ends at `end`, or there is none between them.
        """
        end = self.steps if end is None else end
        begins, ends = ({getattr(entry, side) for entry in self._entries} for side in ("begin", "end"))
        if begin not in begins or end not in ends or begin >= end:
            raise InvalidValueError(
                "steps between entries",
                expected=f"a begin and a later end among {_listed(begins | ends)}",
                got=f"{begin!r} and {end!r}",
            )
        commits = tuple(one for one in self._commits if begin <= one.entry.begin and one.entry.end <= end)
        return self._part(commits, self._partial or len(commits) < len(self._commits))

    def with_entries(self, entries: Iterable[tuple[int, int, int]], *, partial: bool) -> Ledger | None:
        """The ledger of these entries alone, (begin, end, generation); None where one is not here."""
        known = {(one.entry.begin, one.entry.end, one.entry.generation): one for one in self._commits}
        wanted = tuple(known.get(entry) for entry in entries)
        commits = tuple(one for one in wanted if one is not None)
        return self._part(commits, partial) if len(commits) == len(wanted) else None

    def _part(self, commits: tuple[Commit, ...], partial: bool) -> Ledger:
        used = {one.entry.layout for one in commits}
        layouts = {number: layout for number, layout in self._layouts.items() if number in used}
        part = Ledger(self._storage, self._header, commits, layouts)
        part._partial, part._storage_options = partial, self._storage_options
        return part

    def __reduce__(self) -> tuple[Any, ...]:
        entries = tuple((one.begin, one.end, one.generation) for one in self._entries)
        address = Address(self._path, self._storage_options, self.run_id, entries, self._partial)
        return reopened, (address,)

    def walk(self, names: Iterable[str], accumulators: Sequence[str]) -> Iterator[Block]:
        """Yield the totals of many parameters block by block, in little memory; see `walk`.

        Raises:
            UnknownNameError: a name or an accumulator that the ledger does not have.
            CorruptLedgerError: stored data is lost or altered.
        """
        return walk(self._sums, [self[name] for name in names], accumulators)

    @property
    def partial(self) -> bool:
        """Whether `between` left steps out: what has no event here may have had some."""
        return self._partial

    @property
    def path(self) -> str:
        """Where it lies: an absolute path or a URL."""
        return self._path

    @property
    def steps(self) -> int:
        """Committed steps."""
        return self._entries[-1].end

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The live entries, in order of steps."""
        return self._entries

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the recorder was told."""
        return self._header.settings

    @property
    def run_id(self) -> str:
        """Names the run."""
        return self._header.run_id

    @property
    def accumulators(self) -> Mapping[str, str]:
        """The recorded accumulators, name to dtype on disk."""
        return self._header.accumulators

    @property
    def inputs(self) -> Mapping[str, InputRecord]:
        """Moments of the inputs of modules, by the module's canonical name; empty if not recorded."""
        return MappingProxyType(self._inputs)

    def __getitem__(self, name: str) -> ParameterRecord:
        canonical = name if name in self._records else self._aliases.get(name)
        if canonical is None:
            near = difflib.get_close_matches(str(name), [*self._records, *self._aliases], n=1, cutoff=0.0)
            raise UnknownNameError(
                "parameter",
                expected="a name in the ledger",
                got=repr(name),
                remedy=f"the nearest is {near[0]!r}",
            )
        return self._records[canonical]

    def __contains__(self, name: object) -> bool:
        return name in self._records or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        elements = sum(record.info.size for record in self._records.values())
        return (
            f"<Ledger {self._path!r}: {self.steps} steps in {len(self._entries)} entries, "
            f"{len(self)} parameters with {elements:,} elements>"
        )


def _listed(steps: set[int]) -> str:
    shown = sorted(steps)
    return ", ".join(map(str, shown)) if len(shown) <= 12 else f"{shown[:6]} ... {shown[-6:]}"


def _layouts_of(storage: Storage, header: Header, commits: tuple[Commit, ...]) -> dict[int, StoredLayout]:
    layouts: dict[int, StoredLayout] = {}
    for commit in commits:
        number = commit.entry.layout
        if number not in layouts:
            layouts[number] = read_layout(storage, number, commit.layout_digest)
        check_commit(storage, header, commit, layouts[number])
    return layouts
