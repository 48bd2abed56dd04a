from __future__ import annotations

import shutil
import tempfile
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gradtrace.errors import EmptyLedgerError
from gradtrace.ledger.format import Layout, ParameterInfo, Piece
from gradtrace.ledger.location import storage_at
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.sampling import Sampling
from gradtrace.ledger.writer import LedgerWriter


def info(name: str, *shape: int) -> ParameterInfo:
    return ParameterInfo(
        name, shape, "float32", module="m", module_class="Linear", role="weight", orientation="out,in"
    )


A, B, C = info("a", 2, 3), info("b", 4), info("c")
LAYOUTS = (
    Layout.whole([A, B]),
    Layout.whole([C, B]),
    Layout((B, A), ((Piece(1, 0, (0, 1), (2, 2)),), (Piece(0, 1, (0,), (4,)), Piece(1, 5, (0, 0), (2, 1))))),
)


class History(RuleBasedStateMachine):
    """Commit, void, merge, reopen and overwrite in any order, beside a plain list of what must be there."""

    make_book: ClassVar[Any]
    place: ClassVar[str]

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.book = self.make_book(self.place.format(self.folder))
        self.writer = self.book.create()
        self.numbers: list[int] = []

    @rule(which=st.sampled_from(LAYOUTS))
    def add_layout(self, which: Layout) -> None:
        self.numbers.append(self.book.add(self.writer, which))

    @precondition(lambda self: self.numbers)
    @rule(data=st.data(), steps=st.integers(1, 5))
    def commit(self, data: st.DataObject, steps: int) -> None:
        stride = data.draw(st.sampled_from([1, 4, 64, None]))
        sampling = Sampling(stride, steps if stride == 1 else data.draw(st.integers(0, steps)))
        self.book.commit(self.writer, data.draw(st.sampled_from(self.numbers)), steps, sampling=sampling)

    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        ends = [0, *(entry.end for entry, _ in self.book.kept)]
        step = data.draw(st.sampled_from(ends))
        self.writer.void(step)
        self.book.keep_until(step)

    @rule(data=st.data(), factor=st.integers(0, 8))
    def merge(self, data: st.DataObject, factor: int) -> None:
        # A long entry makes those before it old enough.
        if factor and self.numbers:
            self.commit(data, 1 + 4 * factor)
        ends = [0, *(entry.end for entry, _ in self.book.kept)]
        protected = data.draw(st.sets(st.sampled_from(ends), max_size=3))
        before, sampled = len(self.book.kept), sum(e.sampling.steps for e in self.writer.entries)
        merged = self.book.merge(self.writer, tuple(protected))
        assert sum(e.sampling.steps for e in self.writer.entries) == sampled
        assert len(self.book.kept) <= before - merged // 2
        assert protected <= {0, *(entry.end for entry, _ in self.book.kept)}
        on_disk = set(storage_at(self.book.path).names("entries")) - {"zarr.json"}
        assert on_disk == {f"{e.begin:012d}-{e.end:012d}-{e.generation:04d}" for e, _ in self.book.kept}

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.writer = LedgerWriter.reopen(self.book.path)
        # What no commit ever named is gone; the number may be given again.
        self.numbers = [number for number in self.numbers if number in self.writer.layouts]

    @rule()
    def overwrite(self) -> None:
        self.writer.close()
        self.book.kept.clear()
        self.writer = self.book.create(overwrite=True)
        self.numbers.clear()

    @invariant()
    def the_disk_says_what_the_list_says(self) -> None:
        if not hasattr(self, "book"):
            return
        assert self.writer.entries == tuple(entry for entry, _ in self.book.kept)
        if self.book.kept:
            ledger = self.book.check()
            for name, record in ledger.items():
                first = next(
                    entry.layout
                    for entry, _ in self.book.kept
                    if any(one.name == name for one in self.book.layouts[entry.layout].parameters)
                )
                assert (record.opening == self.book.opening(first, name)).all()
        else:
            with pytest.raises(EmptyLedgerError):
                Ledger.open(self.book.path)

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("place", ["{}/run", "memory://histories{}/run"])
def test_any_history_of_commits_voids_merges_and_reopenings_reads_back(book_at: Any, place: str) -> None:
    History.make_book = book_at
    History.place = place
    run_state_machine_as_test(
        History, settings=settings(max_examples=25, stateful_step_count=12, deadline=None)
    )
