from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gradtrace.errors import EmptyLedgerError, LedgerBusyError, LedgerNotFoundError
from gradtrace.ledger.format import ACCUMULATORS, Layout
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter

HOLD = """
import sys
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.writer import LedgerWriter
writer = LedgerWriter.reopen(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "take", [LedgerWriter.reopen, lambda path: LedgerWriter.create(path, settings={}, overwrite=True)]
)
def test_a_second_writer_in_this_process_is_refused_and_the_first_unharmed(
    book: Any, pair: Layout, take: Any
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        with pytest.raises(LedgerBusyError, match="another process is writing"):
            take(book.path)
        book.commit(writer, number)
    book.check()
    take(book.path).close()


def test_a_writer_in_another_process_blocks_until_it_is_killed(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(book.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LedgerBusyError):
            LedgerWriter.reopen(book.path)
        with pytest.raises(LedgerBusyError):
            book.create(overwrite=True)
        book.check()
        holder.send_signal(signal.SIGKILL)
    finally:
        holder.kill()
        holder.communicate()
    assert (book.path / "writer.lock").exists()
    with LedgerWriter.reopen(book.path) as writer:
        book.commit(writer, 0)
    book.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_that_outlives_the_writer_does_not_keep_the_lock(book: Any) -> None:
    writer = book.create()
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        # As a data loader's worker: it holds whatever the fork gave it until it is told to end.
        os.close(done)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    try:
        with pytest.raises(LedgerBusyError):
            LedgerWriter.reopen(book.path)
        writer.close()
        LedgerWriter.reopen(book.path).close()
    finally:
        os.close(done)
        os.waitpid(child, 0)


def test_a_lock_file_that_is_a_link_is_not_followed(book: Any, tmp_path: Path) -> None:
    book.create().close()
    (book.path / "writer.lock").unlink()
    (book.path / "writer.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"):
        LedgerWriter.reopen(book.path)
    assert not (tmp_path / "elsewhere").exists()


def test_the_thread_that_closes_need_not_be_the_one_that_opened(book: Any) -> None:
    made: list[LedgerWriter] = []
    thread = threading.Thread(target=lambda: made.append(book.create()))
    thread.start()
    thread.join()
    made[0].void(0)
    made[0].close()
    LedgerWriter.reopen(book.path).close()


def test_readers_see_whole_entries_while_a_writer_commits_and_voids(book: Any, pair: Layout) -> None:
    entries = 40
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with book.create() as writer:
                number = book.add(writer, pair)
                for index in range(entries):
                    if index == entries // 2:
                        writer.void(writer.end - 4)
                        book.keep_until(writer.end)
                    book.commit(writer, number)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while thread.is_alive():
        try:
            ledger = Ledger.open(book.path)
        except (EmptyLedgerError, LedgerNotFoundError):
            continue
        seen.add(ledger.steps)
        assert ledger.steps == 4 * len(ledger.entries)
        for accumulator in ACCUMULATORS:
            assert getattr(ledger["net.0.weight"], accumulator).shape == (3, 5)
    thread.join()
    assert failures == []
    assert len(seen) > 1
    assert book.check().steps == 4 * (entries - 1)


def test_a_listing_made_while_commits_land_is_made_again(
    book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for _ in range(3):
            book.commit(writer, number)
    real, early = LocalStorage.names, iter([slice(0, 1), slice(1, None)])

    def names(self: LocalStorage, prefix: str) -> list[str]:
        # First a listing that lacks the second commit, then one that lacks the first.
        return real(self, prefix)[next(early, slice(None))] if prefix == "commits" else real(self, prefix)

    monkeypatch.setattr(LocalStorage, "names", names)
    book.check()
