"""One writer at a time: a lock that the system releases when its holder dies."""

from __future__ import annotations

from filelock import FileLock, Timeout

from gradtrace.errors import LedgerBusyError
from gradtrace.ledger.storage import Storage, surfacing

__all__ = ["LOCK", "acquire"]

LOCK = "writer.lock"


def acquire(storage: Storage) -> FileLock:
    """Return the held lock of the ledger; raises LedgerBusyError at once where someone else holds it."""
    # thread_local=False: the thread that closes the ledger need not be the one that opened it.
    lock = FileLock(storage.path / LOCK, timeout=0, thread_local=False)
    with surfacing(f"locking {storage.path}"):
        try:
            lock.acquire()
        except Timeout as error:
            raise LedgerBusyError(
                f"another process is writing {storage.path}", remedy="end it first or choose another path"
            ) from error
    return lock
