"""Objects under keys on the local disk: all that a ledger asks of where it lives."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zarr.abc.store import Store
from zarr.storage import LocalStore

from gradtrace.errors import GradtraceError, InvalidValueError, StorageError

__all__ = ["PARTIAL", "Storage", "surfacing"]

PARTIAL = ".partial"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@contextmanager
def surfacing(what: str) -> Iterator[None]:
    """Turn an OSError of the system into a StorageError that says what was being done."""
    try:
        yield
    except GradtraceError:
        raise
    except OSError as error:
        failure = StorageError(f"{what} failed: {error.strerror or error}")
        failure.errno = error.errno
        raise failure from error


class Storage:
    """A directory as a store of objects.

    Keys are segments of letters, digits, `_`, `.` and `-` joined by "/". What is written or removed never
    leaves the directory through a symbolic link. Every failure of the disk is a StorageError. A sibling for
    object stores offers the same methods; there every write is atomic and durable and `sync` does nothing.
    Not safe: two processes that write the same key.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
        if not text or "\0" in text or "://" in text:
            raise InvalidValueError("ledger path", expected="a path on a local disk", got=repr(path))
        self.path = Path(os.path.abspath(text))

    def get(self, key: str) -> bytes | None:
        """Return the object's bytes, or None where there is no such object."""
        with surfacing(f"reading {self.path / key}"):
            try:
                return self._at(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

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

    def write(self, key: str, data: bytes) -> None:
        """Write an object that nothing names yet: not atomic, and durable only after `sync`."""
        path = self._inside(key)
        with surfacing(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)

    def zarr_store(self, prefix: str, *, read_only: bool = False) -> Store:
        """Return a zarr store rooted at `prefix`; what it writes is durable only after `sync`."""
        return LocalStore(self._inside(prefix), read_only=read_only)

    def delete_prefix(self, prefix: str) -> None:
        """Remove the object `prefix` and everything below it; nothing where it does not exist."""
        path = self._inside(prefix)
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
            # Bottom up, so that no directory is durable before what it names.
            for directory, _, files in os.walk(path, topdown=False, onerror=_reraise):
                for name in files:
                    _sync_file(os.path.join(directory, name))
                _sync_directory(directory)
            self._sync_up(path.parent)

    def missing(self) -> list[Path]:
        """Return the directory and those of its parents that do not exist, outermost first."""
        return [path for path in (self.path, *self.path.parents) if not path.exists()][::-1]

    def make(self) -> None:
        """Make the directory and its parents, durably."""
        with surfacing(f"making {self.path}"):
            for path in self.missing():
                path.mkdir(exist_ok=True)
                _sync_directory(path.parent)

    def _at(self, key: str) -> Path:
        segments = key.split("/") if key else []
        if not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise InvalidValueError(
                "storage key", expected="plain segments joined by '/'", got=repr(key)[:80]
            )
        return self.path.joinpath(*segments)

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
