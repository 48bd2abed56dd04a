from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gradtrace.errors import (
    EmptyLedgerError,
    InvalidValueError,
    LedgerNotFoundError,
    StateError,
    StorageError,
)
from gradtrace.ledger.format import Layout
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter

# More than any of the calls below needs; a test at an operation that a call never reaches is skipped by name.
OPERATIONS = range(52)


def failure_of(call: Callable[[], object]) -> StorageError | None:
    try:
        call()
    except StorageError as error:
        return error
    return None


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.name != "writer.lock"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_operation_of_a_commit_leaves_exactly_the_earlier_entries(
    book: Any, pair: Layout, disk: Any, operation: int
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        book.commit(writer, number)
        disk.arm(operation, dies=True)
        failure = failure_of(lambda: book.commit(writer, number))
        disk.disarm()
    if failure is None:
        assert operation > 40, "a commit is made of more operations than this"
        pytest.skip("the commit was over")
    visible = Ledger.open(book.path).steps
    landed = (book.path / "commits/000000000008-000000000012-0000.json").exists()
    # Once its name stands the entry exists, although the writer died before it could say so.
    assert visible == (12 if landed else 8)
    if not landed:
        book.check()
    with LedgerWriter.reopen(book.path) as successor:
        assert successor.end == visible
        successor.void(8)
        book.commit(successor, number)
        book.commit(successor, number)
    book.check()
    assert not [name for name in files(book.path) if name.endswith(".partial")]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_failure_at_any_operation_is_one_error_and_the_same_writer_goes_on(
    book: Any, pair: Layout, disk: Any, operation: int
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        disk.arm(operation)
        failure = failure_of(lambda: book.commit(writer, number))
        disk.disarm()
        if failure is None:
            # Beyond the last operation, or one whose failure costs nothing: making a directory that is there.
            pytest.skip("nothing failed")
        assert failure.errno == errno.ENOSPC
        assert "No space left" in str(failure)
        # Whether it landed before the failure, `end` says.
        if writer.end == 4:
            book.check()
            book.commit(writer, number)
            book.check()
        assert writer.end == Ledger.open(book.path).steps == 8
        writer.void(4)
        book.keep_until(4)
        book.commit(writer, number)
        book.check()


@pytest.mark.parametrize("operation", [3, 10, 20, 30, 40, 44, 45])
def test_the_same_writer_goes_on_when_the_disk_comes_back(
    book: Any, pair: Layout, disk: Any, operation: int
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        disk.arm(operation, dies=True)
        failure = failure_of(lambda: book.commit(writer, number))
        assert failure is not None
        # Cleaning up failed as well, and so does whatever is tried before the disk is back.
        assert any("next" in note for note in failure.__notes__)
        assert failure_of(lambda: book.commit(writer, number))
        disk.disarm()
        book.check()
        book.commit(writer, number)
        book.commit(writer, number)
    book.check()


@pytest.mark.parametrize("operation", range(25))
def test_a_crash_while_a_layout_is_written_leaves_no_layout(
    book: Any, pair: Layout, disk: Any, operation: int
) -> None:
    with book.create() as writer:
        disk.arm(operation, dies=True)
        with pytest.raises(StorageError):
            # Whatever the layout's operations leave over, the commit that follows dies of.
            book.commit(writer, book.add(writer, pair))
        disk.disarm()
    with pytest.raises(EmptyLedgerError):
        Ledger.open(book.path)
    with LedgerWriter.reopen(book.path) as successor:
        assert dict(successor.layouts) == {}
        assert {name for name in files(book.path) if name.startswith(("layouts/", "entries/"))} == {
            "layouts/zarr.json",
            "entries/zarr.json",
        }
        book.commit(successor, book.add(successor, pair))
    book.check()


@pytest.mark.parametrize("operation", range(8))
def test_a_crash_while_voiding_voids_all_or_nothing(
    book: Any, pair: Layout, disk: Any, operation: int
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for _ in range(3):
            book.commit(writer, number)
        disk.arm(operation, dies=True)
        failure = failure_of(lambda: writer.void(4))
        disk.disarm()
    assert failure or operation >= 4
    steps = Ledger.open(book.path).steps
    assert steps in (4, 12)
    book.keep_until(steps)
    book.check()
    with LedgerWriter.reopen(book.path) as successor:
        book.commit(successor, number)
    book.check()


@pytest.mark.parametrize("operation", range(12))
def test_a_creation_that_fails_leaves_nothing_behind(
    book_at: Any, disk: Any, tmp_path: Path, operation: int
) -> None:
    book = book_at(tmp_path / "new" / "folder" / "run")
    disk.arm(operation)
    failure = failure_of(lambda: book.create().close())
    disk.disarm()
    if failure is None:
        pytest.skip("a failure that costs nothing: making a directory that is there")
    assert list(tmp_path.iterdir()) == []
    book.create().close()


@pytest.mark.parametrize("operation", range(12))
def test_a_creation_that_dies_can_be_tried_again(
    book_at: Any, disk: Any, tmp_path: Path, operation: int
) -> None:
    book = book_at(tmp_path / "new" / "folder" / "run")
    disk.arm(operation, dies=True)
    with pytest.raises(StorageError):
        book.create()
    disk.disarm()
    # Once the root stands it is an empty ledger of ours.
    book.create(overwrite=(book.path / "zarr.json").exists()).close()


@pytest.mark.parametrize("operation", range(20))
def test_a_creation_that_died_is_completed_by_the_next_writer(
    book_at: Any, disk: Any, tmp_path: Path, operation: int
) -> None:
    book = book_at(tmp_path / "new" / "folder" / "run")
    disk.arm(operation, dies=True)
    with pytest.raises(StorageError):
        book.create()
    disk.disarm()
    begun = (book.path / "zarr.json").exists()
    (LedgerWriter.reopen(book.path) if begun else book.create()).close()
    parts = {"layouts", "entries", "commits"}
    assert files(book.path) == parts | {"zarr.json"} | {f"{part}/zarr.json" for part in parts}


@pytest.mark.parametrize("operation", range(40))
def test_overwriting_that_dies_leaves_the_old_ledger_whole_or_an_empty_one(
    book: Any, pair: Layout, disk: Any, operation: int
) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
        old = writer.run_id
    disk.arm(operation, dies=True)
    failure = failure_of(lambda: book.create(overwrite=True).close())
    disk.disarm()
    if failure is None:
        assert operation > 30, "overwriting is made of more operations than this"
        pytest.skip("the creation was over")
    landed = old not in (book.path / "zarr.json").read_text()
    with pytest.raises(EmptyLedgerError) if landed else nullcontext():
        Ledger.open(book.path)
    with LedgerWriter.reopen(book.path) as successor:
        assert (successor.run_id == old, successor.end) == ((False, 0) if landed else (True, 4))
        if not landed:
            book.check()
        else:
            assert not [name for name in files(book.path) if "rank-0000" in name or "layout.json" in name]
            successor_book = type(book)(book.path)
            successor_book.commit(successor, successor_book.add(successor, pair))
            successor_book.check()


def test_what_was_never_committed_is_invisible_and_removed_by_the_next_writer(
    book: Any, pair: Layout
) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    torn = book.path / "entries/000000000004-000000000008-0000/rank-0000"
    torn.mkdir(parents=True)
    (torn / "grad_sum").write_text("half")
    (book.path / "layouts/0001").mkdir()
    (book.path / "commits/000000000004-000000000008-0000.json.af.partial").write_text("{")
    (book.path / "entries/notes.txt").write_text("not ours")
    before = files(book.path)
    book.check()
    assert files(book.path) == before
    LedgerWriter.reopen(book.path).close()
    book.check()
    left = files(book.path)
    assert not [name for name in left if "0004-" in name.partition("/")[2][8:13] or name.endswith(".partial")]
    assert not torn.exists()
    assert not (book.path / "layouts/0001").exists()
    assert (book.path / "entries/notes.txt").read_text() == "not ours"


def test_reopening_goes_on_where_the_last_entry_ends(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number, run = book.add(writer, pair), writer.run_id
        book.commit(writer, number)
    with LedgerWriter.reopen(book.path) as writer:
        assert (writer.end, writer.run_id, writer.settings) == (4, run, {"window_steps": 4})
        assert dict(writer.layouts) == {number: pair}
        assert [entry.end for entry in writer.entries] == [4]
        book.commit(writer, number)
        assert book.add(writer, pair) == number + 1
        book.commit(writer, number + 1)
    book.check()


def test_a_ledger_without_an_entry_is_empty_not_broken(book: Any, pair: Layout) -> None:
    book.create().close()
    with pytest.raises(EmptyLedgerError):
        Ledger.open(book.path)
    with LedgerWriter.reopen(book.path) as writer:
        assert writer.end == 0
        book.commit(writer, book.add(writer, pair))
    book.check()


def test_a_closed_writer_says_so(book: Any, pair: Layout) -> None:
    writer = book.create()
    writer.close()
    writer.close()
    with pytest.raises(StateError, match="closed"):
        book.add(writer, pair)
    with pytest.raises(StateError, match="closed"):
        writer.void(0)


def test_reopening_where_nothing_is_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(LedgerNotFoundError):
        LedgerWriter.reopen(tmp_path / "none" / "here")
    with pytest.raises(LedgerNotFoundError):
        Ledger.open(tmp_path / "none" / "here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "nearest"),
    [(1, 0), (3, 4), (5, 4), (9, 8), (40, 8), (-1, 0), (True, 0), (2.5, 8), (None, 8), ("4", 8)],
)
def test_going_back_to_where_no_entry_ends_names_the_nearest_step(
    book: Any, pair: Layout, step: Any, nearest: int
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        book.commit(writer, number)
        with pytest.raises(InvalidValueError, match=f"nearest one is {nearest}"):
            writer.void(step)
    book.check()


def test_going_back_to_the_end_writes_nothing(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
        before = files(book.path)
        writer.void(4)
    assert files(book.path) == before


def test_steps_that_were_voided_are_written_anew(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for _ in range(3):
            book.commit(writer, number)
        writer.void(4)
        book.keep_until(4)
        book.check()
        book.commit(writer, number)
        book.commit(writer, number, steps=2)
        book.check()
        writer.void(0)
        book.keep_until(0)
        with pytest.raises(EmptyLedgerError):
            Ledger.open(book.path)
        entry = book.commit(writer, number)
        assert entry.generation == 2
    book.check()
    with LedgerWriter.reopen(book.path) as writer:
        book.commit(writer, number)
    book.check()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_one_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission"):
            LedgerWriter.create(tmp_path / "run", settings={})
    finally:
        tmp_path.chmod(0o700)


def test_permission_denied_is_one_error_that_keeps_its_number(book: Any, pair: Layout, disk: Any) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        disk.error = PermissionError(errno.EACCES, "Permission denied")
        disk.arm(5)
        with pytest.raises(StorageError, match="Permission denied") as caught:
            book.commit(writer, number)
        disk.disarm()
    assert caught.value.errno == errno.EACCES
    assert isinstance(caught.value, OSError)
    book.check()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names files by their descriptors")
def test_all_data_is_synced_before_the_commit_and_the_commit_before_its_announcement(
    book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, str]] = []
    replace = os.replace

    def logged_replace(source: Any, target: Any) -> None:
        log.append(("replace", str(target)))
        replace(source, target)

    with book.create() as writer:
        number = book.add(writer, pair)
        monkeypatch.setattr(os, "fsync", lambda fd: log.append(("fsync", os.readlink(f"/proc/self/fd/{fd}"))))
        monkeypatch.setattr(os, "replace", logged_replace)
        book.commit(writer, number)
    commit = book.path / "commits/000000000000-000000000004-0000.json"
    landing = log.index(("replace", str(commit)))
    synced = {Path(name) for kind, name in log[:landing] if kind == "fsync"}
    entry = book.path / "entries/000000000000-000000000004-0000"
    assert {entry, *entry.rglob("*"), entry.parent, book.path} <= synced
    assert any(name.name.startswith(commit.name) for name in synced), "the commit's own bytes"
    assert ("fsync", str(commit.parent)) in log[landing:]
