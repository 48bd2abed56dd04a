"""What the ledger's tests share: small layouts, arrays drawn from a seed, and a disk that can fail."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.ledger.format import ACCUMULATORS, Entry, Layout, ParameterInfo
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.sampling import ALL_STEPS, Sampling
from gradtrace.ledger.writer import LedgerWriter

Arrays = dict[str, np.ndarray[Any, Any]]


def parameter(name: str, *shape: int, aliases: Sequence[str] = ()) -> ParameterInfo:
    return ParameterInfo(
        name,
        shape,
        "float32",
        aliases=tuple(aliases),
        module=name.rpartition(".")[0],
        module_class="Linear",
        role="weight",
        orientation="out,in",
    )


def drawn(layout: Layout, rank: int, seed: int) -> Arrays:
    """Arrays whose values are multiples of 1/64, so that float64 sums in any order are exact."""
    random = np.random.default_rng([seed, rank])
    size = layout.size(rank)
    arrays = {name: random.integers(-4096, 4096, size) / 64 for name in ACCUMULATORS}
    return {
        name: (np.abs(arrays[name]) if dtype == "uint32" else arrays[name]).astype(dtype)
        for name, dtype in ACCUMULATORS.items()
    }


def joined(parts: Sequence[Arrays]) -> Arrays:
    """The oracle of a merge; exact for what `drawn` gives."""
    return {
        name: np.sum([part[name].astype(np.float64) for part in parts], axis=0).astype(ACCUMULATORS[name])
        for name in parts[0]
    }


class Book:
    """A ledger under test beside what its totals must be."""

    def __init__(self, path: Path | str, options: Mapping[str, object] | None = None) -> None:
        self.path, self.options = path, options
        self.accumulators = list(ACCUMULATORS)
        self.openings: dict[int, list[np.ndarray[Any, Any]]] = {}
        self.layouts: dict[int, Layout] = {}
        self.kept: list[tuple[Entry, list[Arrays]]] = []

    def create(self, **options: Any) -> LedgerWriter:
        return LedgerWriter.create(
            self.path, settings={"window_steps": 4}, storage_options=self.options, **options
        )

    def reopen(self) -> LedgerWriter:
        return LedgerWriter.reopen(self.path, storage_options=self.options)

    def add(self, writer: LedgerWriter, layout: Layout) -> int:
        opening = [
            drawn(layout, rank, 10_000 + len(self.openings))["grad_sum"] for rank in range(len(layout.ranks))
        ]
        number = writer.add_layout(layout, opening)
        self.layouts[number], self.openings[number] = layout, opening
        return number

    def commit(
        self,
        writer: LedgerWriter,
        number: int,
        steps: int = 4,
        details: Mapping[str, Any] | None = None,
        sampling: Sampling = ALL_STEPS,
    ) -> Entry:
        layout, begin = self.layouts[number], writer.end
        ranks = [
            {name: values for name, values in drawn(layout, rank, begin).items() if name in self.accumulators}
            for rank in range(len(layout.ranks))
        ]
        entry = writer._commit(begin, begin + steps, number, steps // 2, ranks, details or {}, sampling)
        self.kept.append((entry, ranks))
        return entry

    def keep_until(self, step: int) -> None:
        self.kept = [(entry, ranks) for entry, ranks in self.kept if entry.end <= step]

    def merge(self, writer: LedgerWriter, protected: Sequence[int] = ()) -> int:
        merged = writer.merge(protected)
        self.follow(writer.entries)
        return merged

    def follow(self, entries: Sequence[Entry]) -> None:
        """Go on with `entries` in place of the kept ones: the same steps, neighbours of one layout joined."""
        kept, rest = [], list(self.kept)
        for entry in entries:
            parts = [part for part in rest if part[0].end <= entry.end]
            rest = rest[len(parts) :]
            spans = [(part.begin, part.end) for part, _ in parts]
            assert [entry.begin, *(end for _, end in spans)] == [*(begin for begin, _ in spans), entry.end]
            assert {part.layout for part, _ in parts} == {entry.layout}
            assert sum(part.windows for part, _ in parts) == entry.windows
            kept.append(
                (entry, [joined(ranks) for ranks in zip(*(ranks for _, ranks in parts), strict=True)])
            )
        assert rest == []
        self.kept = kept

    def total(self, name: str, accumulator: str) -> np.ndarray[Any, Any]:
        whole: Any = 0
        for entry, ranks in self.kept:
            layout = self.layouts[entry.layout]
            flat = [arrays[accumulator].astype(np.float64) for arrays in ranks]
            if any(info.name == name for info in layout.parameters):
                whole = whole + put_together(layout, name, flat)
        return np.asarray(whole)

    def opening(self, number: int, name: str) -> np.ndarray[Any, Any]:
        return put_together(self.layouts[number], name, self.openings[number])

    def check(self) -> Ledger:
        """The ledger on disk holds exactly the kept entries, and every total of every parameter is right."""
        ledger = Ledger.open(self.path, storage_options=self.options)
        assert ledger.entries == tuple(entry for entry, _ in self.kept)
        names = {info.name for entry, _ in self.kept for info in self.layouts[entry.layout].parameters}
        assert set(ledger) == names
        assert set(ledger.accumulators) == set(self.accumulators)
        for name in names:
            for accumulator in self.accumulators:
                read = getattr(ledger[name], accumulator)
                np.testing.assert_array_equal(
                    read, self.total(name, accumulator), err_msg=f"{name} {accumulator}"
                )
        return ledger


def put_together(layout: Layout, name: str, flat: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The oracle: element by element from the definition of a piece."""
    index = [info.name for info in layout.parameters].index(name)
    whole = np.zeros(layout.parameters[index].shape)
    for rank, pieces in enumerate(layout.ranks):
        for piece in pieces:
            if piece.parameter == index:
                for position, corner in enumerate(np.ndindex(piece.shape)):
                    place = tuple(a + b for a, b in zip(piece.start, corner, strict=True))
                    whole[place] = flat[rank][piece.offset + position]
    return whole


class Disk:
    """Counts the operations that change the disk; fails at one of them, alone or with all that follow."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.fail_at, self.dies = 0, -1, False
        self.error = OSError(errno.ENOSPC, "No space left on device")
        self._lock = threading.Lock()
        for name in ("fsync", "link", "mkdir", "replace", "rmdir", "unlink"):
            patch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            with self._lock:
                number, self.count = self.count, self.count + 1
            if number == self.fail_at or (self.dies and 0 <= self.fail_at <= number):
                raise self.error
            return real(*args, **options)

        return operation

    def arm(self, fail_at: int, *, dies: bool = False) -> None:
        self.count, self.fail_at, self.dies = 0, fail_at, dies

    def disarm(self) -> None:
        self.fail_at, self.dies = -1, False


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here can pull the plug, so none waits for the platter."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "run.ledger.zarr")


@pytest.fixture
def book_at() -> type[Book]:
    return Book


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, quick_sync: None) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.disarm()


@pytest.fixture
def parameter_of() -> Callable[..., ParameterInfo]:
    return parameter


@pytest.fixture
def pair() -> Layout:
    """Two parameters on one rank: a 3 x 5 weight with an alias, and a bias of 3."""
    return Layout.whole(
        [parameter("net.0.weight", 3, 5, aliases=["head.weight"]), parameter("net.0.bias", 3)]
    )
