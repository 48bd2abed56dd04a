from __future__ import annotations

import copy
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import StateError, StorageError
from gradtrace.ledger import header
from gradtrace.ledger.format import ACCUMULATORS, Layout
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter

# More than a merge needs; the last ones are skipped by name.
OPERATIONS = range(64)
OLD, MERGED = [4, 8, 48], [8, 48]


@pytest.fixture(scope="session")
def ripe(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Where a ledger with two entries to merge is kept, once one was made."""
    return [tmp_path_factory.mktemp("ripe") / "run"]


@pytest.fixture
def old(ripe: list[Any], book: Any, book_at: Any, pair: Layout) -> Any:
    if len(ripe) == 1:
        made = book_at(ripe[0])
        made.accumulators = ["grad_sum", "events"]
        few = {name: ACCUMULATORS[name] for name in made.accumulators}
        with pytest.MonkeyPatch.context() as patch:
            # Fewer arrays, fewer operations to fail at.
            patch.setattr(header, "ACCUMULATORS", few)
            writer = made.create()
        with writer:
            number = made.add(writer, pair)
            for steps in (4, 4, 40):
                made.commit(writer, number, steps)
        ripe.append(made)
    shutil.copytree(ripe[0], book.path)
    book.kept, book.layouts, book.openings = list(ripe[1].kept), ripe[1].layouts, ripe[1].openings
    book.accumulators = ripe[1].accumulators
    return book


def merging(writer: LedgerWriter) -> StorageError | None:
    try:
        writer.merge()
    except StorageError as error:
        return error
    return None


def ends(path: Path) -> list[int]:
    return [entry.end for entry in Ledger.open(path).entries]


def spans(path: Path, folder: str) -> set[str]:
    return {name.removesuffix(".json") for name in os.listdir(path / folder) if name[0].isdigit()}


def check_nothing_is_left_over(book: Any) -> None:
    live = {f"{e.begin:012d}-{e.end:012d}-{e.generation:04d}" for e, _ in book.kept}
    assert spans(book.path, "entries") == live
    assert spans(book.path, "commits") == live
    assert not list(book.path.rglob("*.partial"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_operation_of_a_merge_leaves_the_old_entries_or_the_merged_one(
    old: Any, disk: Any, operation: int
) -> None:
    with LedgerWriter.reopen(old.path) as writer:
        disk.arm(operation, dies=True)
        failure = merging(writer)
        disk.disarm()
    if failure is None:
        assert operation > 58, "a merge is made of more operations than this"
        pytest.skip("the merge was over")
    landed = (old.path / "commits/000000000000-000000000008-0001.json").exists()
    assert ends(old.path) == (MERGED if landed else OLD)
    if landed:
        old.follow(Ledger.open(old.path).entries)
    old.check()
    with LedgerWriter.reopen(old.path) as successor:
        check_nothing_is_left_over(old)
        assert old.merge(successor) == (0 if landed else 2)
        old.commit(successor, 0)
    old.check()
    check_nothing_is_left_over(old)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_failure_at_any_operation_of_a_merge_is_one_error_and_the_same_writer_goes_on(
    old: Any, disk: Any, operation: int
) -> None:
    with LedgerWriter.reopen(old.path) as writer:
        disk.arm(operation)
        failure = merging(writer)
        disk.disarm()
        if failure is None:
            pytest.skip("the merge was over, or the failure cost nothing: making a directory that is there")
        assert failure.errno == errno.ENOSPC
        assert ends(old.path) == [entry.end for entry in writer.entries]
        old.follow(writer.entries)
        old.merge(writer)
        assert [entry.end for entry in writer.entries] == MERGED
        old.check()
        check_nothing_is_left_over(old)
        old.commit(writer, 0)
    old.check()


@pytest.mark.parametrize("operation", range(0, 38, 2))
def test_a_recovery_that_dies_as_well_is_gone_on_with(old: Any, disk: Any, operation: int) -> None:
    with LedgerWriter.reopen(old.path) as writer:
        # Everything is written; nothing is removed.
        disk.arm(next_removal(old, disk), dies=True)
        assert merging(writer)
        disk.arm(operation, dies=True)
        with pytest.raises(StorageError):
            writer.merge()
        disk.disarm()
    assert ends(old.path) == MERGED
    with LedgerWriter.reopen(old.path) as successor:
        old.follow(successor.entries)
    old.check()
    check_nothing_is_left_over(old)


def next_removal(old: Any, disk: Any) -> int:
    """The number of the operation with which a merge of this ledger begins to remove the old commits."""
    twin = copy.copy(old)
    twin.path = old.path.with_name("twin")
    shutil.copytree(old.path, twin.path)
    first: list[int] = []
    real = LocalStorage.delete_prefix

    def noted(self: LocalStorage, prefix: str) -> None:
        first.append(disk.count)
        real(self, prefix)

    with pytest.MonkeyPatch.context() as patch, LedgerWriter.reopen(twin.path) as writer:
        patch.setattr(LocalStorage, "delete_prefix", noted)
        disk.arm(-1)
        writer.merge()
    return first[0]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names files by their descriptors")
@pytest.mark.parametrize("after_a_crash", [False, True])
def test_nothing_is_removed_before_what_takes_its_place_is_durable(
    old: Any, disk: Any, after_a_crash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = LedgerWriter.reopen(old.path)
    if after_a_crash:
        disk.arm(next_removal(old, disk), dies=True)
        assert merging(writer)
        disk.disarm()
        writer.close()
    log: list[tuple[str, str]] = []
    real = os.unlink

    def logged(path: Any, *args: Any, **options: Any) -> None:
        log.append(("unlink", os.fspath(path)))
        real(path, *args, **options)

    monkeypatch.setattr(os, "fsync", lambda fd: log.append(("fsync", os.readlink(f"/proc/self/fd/{fd}"))))
    monkeypatch.setattr(os, "unlink", logged)
    if after_a_crash:
        LedgerWriter.reopen(old.path).close()
    else:
        writer.merge()
        writer.close()
    commits = old.path / "commits"
    removals = [
        place for place, (kind, name) in enumerate(log) if kind == "unlink" and name.startswith(str(commits))
    ]
    data = [
        place
        for place, (kind, name) in enumerate(log)
        if kind == "unlink" and not name.startswith(str(commits))
    ]
    assert len(removals) == 2
    synced = {name for kind, name in log[: removals[0]] if kind == "fsync"}
    assert str(commits) in synced
    assert any(Path(name).name.startswith("000000000000-000000000008-0001.json") for name in synced)
    # The commits are gone for good before their data goes.
    assert ("fsync", str(commits)) in log[removals[-1] : data[0]]


def test_a_reader_that_opened_before_is_asked_to_open_again(old: Any) -> None:
    before = Ledger.open(old.path)
    known = before["net.0.bias"].grad_sum
    with LedgerWriter.reopen(old.path) as writer:
        old.merge(writer)
    record = before["net.0.bias"]
    # What it has read it knows; all else is gone.
    assert (record.grad_sum == known).all()
    with pytest.raises(StateError, match=r"merged, voided or replaced.*Open the ledger again"):
        _ = record.events
    old.check()


def test_a_reader_of_a_layout_that_is_gone_is_asked_to_open_again(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
        before = Ledger.open(book.path)
        writer.void(0)
    LedgerWriter.reopen(book.path).close()
    with pytest.raises(StateError, match="Open the ledger again"):
        _ = before["net.0.bias"].opening


def test_a_merge_between_a_readers_listing_and_its_reading_is_seen_whole(
    old: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, writer = LocalStorage.get, LedgerWriter.reopen(old.path)
    pending: list[Callable[[], Any]] = [lambda: old.merge(writer)]

    def get(self: LocalStorage, key: str) -> bytes | None:
        if key.startswith("commits/") and pending:
            pending.pop()()
        return real(self, key)

    monkeypatch.setattr(LocalStorage, "get", get)
    assert ends(old.path) == MERGED
    old.check()
    writer.close()


def test_a_layout_that_goes_while_a_reader_opens_is_not_corruption(
    book: Any, pair: Layout, parameter_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Layout.whole([parameter_of("other", 2)])
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
        book.commit(writer, book.add(writer, other))

    def go_back() -> None:
        with LedgerWriter.reopen(book.path) as writer:
            writer.void(4)
        LedgerWriter.reopen(book.path).close()

    real, pending = LocalStorage.get, [go_back]

    def get(self: LocalStorage, key: str) -> bytes | None:
        if key.startswith("layouts/0001") and pending:
            pending.pop()()
        return real(self, key)

    monkeypatch.setattr(LocalStorage, "get", get)
    assert ends(book.path) == [4]


def test_readers_see_right_totals_or_are_asked_to_open_again_while_a_writer_merges(
    book: Any, pair: Layout
) -> None:
    entries, failures = 40, list[BaseException]()
    ones = {name: np.ones(18, dtype) for name, dtype in ACCUMULATORS.items()}
    writer = book.create()
    number = book.add(writer, pair)

    def commit() -> None:
        writer.commit_entry(writer.end, writer.end + 4, layout=number, windows=1, arrays=ones, details={})

    def write() -> None:
        try:
            for _ in range(entries):
                commit()
                writer.merge()
        except BaseException as error:
            failures.append(error)

    commit()
    thread = threading.Thread(target=write)
    thread.start()
    whole = 0
    while thread.is_alive():
        ledger = Ledger.open(book.path)
        try:
            for accumulator in ACCUMULATORS:
                total = getattr(ledger["net.0.weight"], accumulator)
                assert (total == ledger.steps / 4).all()
            whole += 1
        except StateError:
            continue
    thread.join()
    writer.close()
    assert failures == []
    assert whole > 0
    assert (Ledger.open(book.path)["net.0.bias"].events == entries + 1).all()
