"""Large files are synced beside the thread that writes them; a commit waits for it, and hears of failures."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from gradtrace.errors import StorageError
from gradtrace.ledger import local_storage
from gradtrace.ledger.background_sync import BackgroundSync
from gradtrace.ledger.format import Layout

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names files by descriptors")


@pytest.fixture(autouse=True)
def all_large(monkeypatch: pytest.MonkeyPatch, quick_sync: None) -> None:
    monkeypatch.setattr(local_storage, "LARGE", 0)


def test_a_commit_waits_for_what_is_under_way(
    book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, synced = threading.Event(), set[str]()

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith("/events/c/0"):
            assert release.wait(30)
        synced.add(name)

    with book.create() as writer:
        number = book.add(writer, pair)
        monkeypatch.setattr(os, "fsync", fsync)
        committing = threading.Thread(target=book.commit, args=(writer, number))
        committing.start()
        committing.join(0.5)
        assert committing.is_alive()
        assert list(Path(book.path, "commits").glob("0*")) == []
        release.set()
        committing.join(30)
        files = {str(file) for file in Path(book.path, "entries").rglob("*") if file.is_file()}
        assert files - {f"{book.path}/entries/zarr.json"} <= synced
    book.check()


@pytest.mark.parametrize("accumulator", ["grad_sum", "window_votes"])
def test_a_failure_in_the_background_fails_the_commit_and_the_next_one_works(
    book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch, accumulator: str
) -> None:
    failed: list[str] = []

    def fsync(descriptor: int) -> None:
        # As the system does it: a failure is reported once, and the next sync of the file is fine.
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/{accumulator}/c/0") and not failed:
            failed.append(threading.current_thread().name)
            raise OSError(errno.EIO, "Input/output error")

    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match=r"syncing .* failed: Input/output error"):
            book.commit(writer, number)
        assert failed
        assert failed[0].startswith("gradtrace-sync")
        assert writer.end == 4
        book.commit(writer, number)
    book.check()


def test_only_what_is_asked_for_is_waited_for_and_forgotten() -> None:
    done: list[str] = []

    def sync(path: str) -> None:
        done.append(path)
        if "bad" in path:
            raise OSError(errno.EIO, path)

    background = BackgroundSync(sync)
    for path in ("/l/a/1", "/l/ab/1", "/l/a/bad", "/l/a/2"):
        background.begin(path)
    background.forget("/l/a/bad")
    assert background.finish("/l/a") == {"/l/a/1", "/l/a/2"}
    assert background.finish("/l/a") == frozenset()
    assert background.finish("/l/ab/1") == {"/l/ab/1"}
    background.begin("/l/bad")
    with pytest.raises(OSError, match="bad"):
        background.finish("/l")
    assert sorted(done) == ["/l/a/1", "/l/a/2", "/l/a/bad", "/l/ab/1", "/l/bad"]


def test_no_thread_stays_behind_a_commit(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        assert not [one for one in threading.enumerate() if one.name.startswith("gradtrace-sync")]
