"""Objects under keys in a directory of the local disk."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from zarr.abc.store import Store
from zarr.storage import LocalStore

from gradtrace.errors import InvalidValueError, StorageError
from gradtrace.ledger.background_sync import BackgroundSync
from gradtrace.ledger.lock import WriterLock, lock_folder
from gradtrace.ledger.storage import PARTIAL, Storage, segments_of, surfacing

__all__ = ["LARGE", "LocalStorage"]

# Bytes from which on a file's sync is worth the thread that it waits in.
LARGE = 2**20


class LocalStorage(Storage):
    """A directory as a store of objects.

    What is written or removed never leaves the directory through a symbolic link.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
        if not text or "\0" in text:
            raise InvalidValueError("ledger path", expected="a path on a local disk", got=repr(path))
        self.path = Path(os.path.abspath(text))
        self._background = BackgroundSync(_sync_file)

    @property
    def location(self) -> str:
        """The absolute path."""
        return str(self.path)

    def at(self, key: str) -> str:
        """The absolute path of an object."""
        return str(self.path / key)

    def get(self, key: str) -> bytes | None:
        """See Storage."""
        with surfacing(f"reading {self.path / key}"):
            try:
                return self._at(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def open(self, key: str) -> BinaryIO | None:
        """See Storage; the file, unbuffered."""
        with surfacing(f"reading {self.path / key}"):
            try:
                file = self._at(key).open("rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
            _read_ahead(file)
            return file

    def names(self, prefix: str) -> list[str]:
        """Return the names right below `prefix`, sorted; none where nothing is there."""
        with surfacing(f"listing {self.path / prefix}"):
            try:
                return sorted(os.listdir(self._at(prefix)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def put(self, key: str, data: bytes) -> None:
        """Write an object, atomically, and return once it is durable."""
        path = self._inside(key)
        with surfacing(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            self._sync_up(path.parent)

    def write(self, key: str, *parts: bytes | memoryview) -> None:
        """Write an object that nothing names yet: not atomic, and durable only after `sync`."""
        path = self._inside(key)
        with surfacing(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for part in parts:
                    file.write(part)
            if sum(memoryview(part).nbytes for part in parts) >= LARGE:
                # The disk works on it while the next object is made.
                self._background.begin(str(path))

    def zarr_store(self, prefix: str, *, read_only: bool = False) -> Store:
        """Return a zarr store rooted at `prefix`; what it writes is durable only after `sync`."""
        return LocalStore(self._inside(prefix), read_only=read_only)

    def delete_prefix(self, prefix: str) -> None:
        """Remove the object `prefix` and everything below it; nothing where it does not exist."""
        path = self._inside(prefix)
        self._background.forget(str(path))
        with surfacing(f"removing {path}"):
            if not os.path.lexists(path):
                return
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            _sync_directory(path.parent)

    def sync(self, prefix: str) -> None:
        """Return once every object below `prefix`, and the way to it, is durable."""
        path = self._inside(prefix)
        with surfacing(f"syncing {path}"):
            durable = self._background.finish(str(path))
            # Bottom up, so that no directory is durable before what it names.
            for directory, _, files in os.walk(path, topdown=False, onerror=_reraise):
                for name in files:
                    if (file := os.path.join(directory, name)) not in durable:
                        _sync_file(file)
                _sync_directory(directory)
            self._sync_up(path.parent)

    def exists(self) -> bool:
        """See Storage."""
        with surfacing(f"looking at {self.path}"):
            return os.path.lexists(self.path)

    def is_folder(self) -> bool:
        """See Storage."""
        with surfacing(f"looking at {self.path}"):
            return self.path.is_dir()

    def is_link(self) -> bool:
        """See Storage."""
        return self.path.is_symlink()

    @contextmanager
    def making(self) -> Iterator[None]:
        """Make the directory and its parents, durably; those that were made go if the block fails."""
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()][::-1]
        try:
            with surfacing(f"making {self.path}"):
                for path in missing:
                    path.mkdir(exist_ok=True)
                    _sync_directory(path.parent)
            yield
        except BaseException:
            for path in reversed(missing):
                with suppress(OSError):
                    path.rmdir()
            raise

    def lock(self) -> WriterLock:
        """See Storage."""
        return lock_folder(self.path)

    def _at(self, key: str) -> Path:
        return self.path.joinpath(*segments_of(key))

    def _inside(self, key: str) -> Path:
        path = self._at(key)
        segments = path.relative_to(self.path).parts
        for count in range(1, len(segments)):
            parent = self.path.joinpath(*segments[:count])
            if parent.is_symlink():
                raise StorageError(
                    f"{parent} is a symbolic link", remedy="remove it: a ledger has none inside"
                )
        return path

    def _sync_up(self, path: Path) -> None:
        while True:
            _sync_directory(path)
            if path == self.path or self.path not in path.parents:
                return
            path = path.parent


def _read_ahead(file: BinaryIO) -> None:
    # A file is then read while the block before is being added, not block by block when it is asked for.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _sync_file(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: str | Path) -> None:
    # Windows can neither open nor sync a directory; there a rename is durable with the volume's journal.
    if os.name != "nt":
        _sync_file(path)


def _reraise(error: OSError) -> None:
    raise error
