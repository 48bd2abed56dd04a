"""What was fsynced is all that is left: SIGKILL alone could not show that a sync is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from gradtrace.errors import GradtraceError
from gradtrace.ledger import local_storage
from gradtrace.ledger.background_sync import BackgroundSync
from gradtrace.ledger.format import Layout
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names files by descriptors")

Tree = dict[str, "bytes | Tree"]


class Platter:
    """What a disk holds after a cut at each sync: synced names in synced folders, synced bytes in files."""

    def __init__(self, top: Path, patch: pytest.MonkeyPatch) -> None:
        self._top = top
        self._files: dict[tuple[int, int], bytes] = {}
        self._folders: dict[tuple[str, int], dict[str, tuple[bool, int, int]]] = {}
        self.moments: list[tuple[Tree, tuple[int, ...]]] = []
        self.announced: tuple[int, ...] = ()
        self._sync_folder(str(top))
        patch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        # Before it and after it: a power cut may come in between.
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            self._sync_folder(path)
        else:
            at = os.fstat(descriptor)
            self._files[at.st_ino, at.st_mtime_ns] = Path(path).read_bytes()
        self.note()

    def note(self) -> None:
        self.moments.append((self._tree(str(self._top), self._top.stat().st_ino), self.announced))

    def _sync_folder(self, path: str) -> None:
        entries = {}
        for entry in os.scandir(path):
            at = entry.stat(follow_symlinks=False)
            entries[entry.name] = (entry.is_dir(follow_symlinks=False), at.st_ino, at.st_mtime_ns)
        self._folders[path, os.stat(path).st_ino] = entries

    def _tree(self, path: str, inode: int) -> Tree:
        tree: Tree = {}
        for name, (folder, number, written) in self._folders.get((path, inode), {}).items():
            if folder:
                tree[name] = self._tree(f"{path}/{name}", number)
            else:
                # The name without the bytes: a file that is empty.
                tree[name] = self._files.get((number, written), b"")
        return tree


def lay(tree: Tree, path: Path) -> None:
    path.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            lay(content, path / name)


def live(book: Any, pair: Layout, platter: Platter) -> None:
    """A run with everything in it; what is announced is said before the next thing happens."""

    def announce(ends: list[int]) -> None:
        platter.announced = tuple(ends)
        platter.note()

    with book.create() as writer:
        announce([0])
        number = book.add(writer, pair)
        for _ in range(3):
            book.commit(writer, number)
            announce([0, *(entry.end for entry in writer.entries)])
        # What a void takes away may be there or not until it is announced.
        platter.announced = (0, 4)
        writer.void(4)
        announce([0, 4])
        for _ in range(6):
            book.commit(writer, number, 1)
            announce([0, writer.end])
        writer.merge()
        announce([0, writer.end])
    with book.reopen() as writer:
        announce([0, writer.end])
        book.commit(writer, number, 40)
        announce([0, writer.end])
        writer.merge()
        announce([0, writer.end])


def losses(platter: Platter, folder: Path) -> list[str]:
    """What each cut lost of what was announced before it."""
    found = []
    last: tuple[Tree, tuple[int, ...]] | None = None
    for number, (tree, announced) in enumerate(platter.moments):
        if not announced or last == (tree, announced):
            continue
        last = tree, announced
        lay(tree, folder / str(number))
        path = folder / str(number) / "run"
        try:
            with LedgerWriter.reopen(path) as writer:
                end = writer.end
                if end < announced[-1]:
                    found.append(f"cut {number}: the ledger ends at {end}, {announced[-1]} was announced")
            if end:
                ledger = Ledger.open(path)
                for record in ledger.values():
                    record.grad_sum, record.events, record.opening  # noqa: B018
        except GradtraceError as error:
            found.append(f"cut {number}: {error}")
    return found


@pytest.fixture
def run(
    book_at: Any, pair: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    def run() -> list[str]:
        top = tmp_path / "disk"
        top.mkdir()
        (tmp_path / "after").mkdir()
        platter = Platter(top, monkeypatch)
        live(book_at(top / "run"), pair, platter)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        assert len(platter.moments) > 50
        return losses(platter, tmp_path / "after")

    return run


@pytest.mark.parametrize("large", [local_storage.LARGE, 0], ids=["at the end", "in the background"])
def test_after_a_cut_at_any_sync_everything_announced_is_there(
    run: Callable[[], list[str]], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_storage, "LARGE", large)
    assert run() == []


def put_without_syncing_its_bytes(self: LocalStorage, key: str, data: bytes) -> None:
    path = self.path / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    self._sync_up(path.parent)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("sync", lambda self, prefix: None),
        ("_sync_up", lambda self, path: None),
        ("put", put_without_syncing_its_bytes),
    ],
)
def test_a_sync_that_is_left_out_is_noticed(
    run: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, name: str, mutant: Any
) -> None:
    monkeypatch.setattr(LocalStorage, name, mutant)
    assert run() != []


def test_a_background_that_syncs_nothing_is_noticed(
    run: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_storage, "LARGE", 0)
    monkeypatch.setattr(BackgroundSync, "begin", lambda self, path: self._under_way.update({path: Done()}))
    assert run() != []


class Done(Future[None]):
    """A sync that is over at once, without having done anything."""

    def __init__(self) -> None:
        super().__init__()
        self.set_result(None)
