"""What a ledger asks of where it lives: objects under keys."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from typing import BinaryIO

from zarr.abc.store import Store

from gradtrace.errors import GradtraceError, InvalidValueError, StorageError
from gradtrace.ledger.lock import WriterLock

__all__ = ["PARTIAL", "Storage", "segments_of", "surfacing"]

PARTIAL = ".partial"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Storage(ABC):
    """A place for the objects of one ledger; cheap to construct, in every process that needs one.

    Keys are segments of letters, digits, `_`, `.` and `-` joined by "/"; other keys are an InvalidValueError.
    Every failure of the disk or the server is a StorageError. On an object store every write is atomic and
    durable, and `sync` does nothing.
    Not safe: two processes that write the same key.
    """

    @property
    @abstractmethod
    def location(self) -> str:
        """How messages name the place; never holds a credential."""

    @abstractmethod
    def at(self, key: str) -> str:
        """How messages name an object."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the object's bytes, or None where there is no such object."""

    def open(self, key: str) -> BinaryIO | None:
        """Open the object to be read once from its beginning, or return None where there is none.

        Reading it may raise OSError. Here it is fetched as a whole; a disk need not.
        """
        raw = self.get(key)
        return None if raw is None else BytesIO(raw)

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Return the names right below `prefix`, sorted; none where nothing is there."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object, atomically, and return once it is durable."""

    @abstractmethod
    def write(self, key: str, *parts: bytes | memoryview) -> None:
        """Write an object that nothing names yet, of these parts in a row; durable only after `sync`.

        It is perhaps not atomic. Large ones may begin to be made durable in the background.
        """

    @abstractmethod
    def zarr_store(self, prefix: str, *, read_only: bool = False) -> Store:
        """Return a zarr store rooted at `prefix`; what it writes is durable only after `sync`."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Remove the object `prefix` and everything below it; nothing where it does not exist."""

    @abstractmethod
    def sync(self, prefix: str) -> None:
        """Return once every object below `prefix`, and the way to it, is durable."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is at this place."""

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether what is there can hold objects."""

    @abstractmethod
    def is_link(self) -> bool:
        """Whether what is there only points to another place."""

    @abstractmethod
    def making(self) -> AbstractContextManager[None]:
        """Make the place, durably; what was made is removed again if the block fails and left it empty."""

    @abstractmethod
    def lock(self) -> WriterLock:
        """Return the held lock of the one writer; raises LedgerBusyError at once where someone holds it."""


def segments_of(key: str) -> list[str]:
    """Return the segments of a key; raises InvalidValueError for one that could lead elsewhere."""
    segments = key.split("/") if key else []
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise InvalidValueError("storage key", expected="plain segments joined by '/'", got=repr(key)[:80])
    return segments


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
