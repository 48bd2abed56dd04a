"""One writer at a time: a lock that the system releases when its holder dies."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from gradtrace.errors import LedgerBusyError, StorageError

__all__ = ["LEASE", "LOCK", "WriterLock", "lock_folder"]

# A file on a local disk; an object on an object store, where there are no locks.
LOCK, LEASE = "writer.lock", "writer.lease"


class WriterLock(Protocol):
    """What the one writer of a ledger holds."""

    @property
    def is_locked(self) -> bool:
        """Whether it is still held: not released yet."""
        ...

    def release(self) -> None:
        """Let the next writer in; releasing twice does nothing."""
        ...


def lock_folder(folder: Path) -> WriterLock:
    """Return the held lock of the ledger in this folder; raises LedgerBusyError where someone holds it."""
    # thread_local=False: the thread that closes the ledger need not be the one that opened it.
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise LedgerBusyError(
            f"another process is writing {folder}", remedy="end it first or choose another path"
        ) from error
    except OSError as error:
        failure = StorageError(f"locking {folder} failed: {error.strerror or error}")
        failure.errno = error.errno
        raise failure from error
    return lock
