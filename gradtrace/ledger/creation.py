"""Beginning a ledger where nothing is or in the place of one of ours, never of anything else."""

from __future__ import annotations

import os
from contextlib import suppress

from gradtrace.errors import GradtraceError, LedgerExistsError, LedgerNotFoundError
from gradtrace.ledger.array_format import ROOT
from gradtrace.ledger.header import Header, read_header
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.ledger.lock import LEASE, LOCK, WriterLock
from gradtrace.ledger.parts import PARTS, complete_parts, is_half_group
from gradtrace.ledger.storage import Storage

__all__ = ["check_destination", "create_ledger", "holds_nothing"]


def create_ledger(storage: Storage, header: Header, *, overwrite: bool) -> WriterLock:
    """Write the root of a new ledger and return its held lock.

    Raises:
        LedgerExistsError: something is there that may not be replaced.
        LedgerBusyError: another process is writing there.
        StorageError: the disk failed; what was not there before is not there now.
    """
    _is_empty(storage, overwrite=overwrite)
    with storage.making():
        lock = storage.lock()
        fresh = False
        try:
            # Looked at again under the lock: another process may have come first.
            fresh = _is_empty(storage, overwrite=overwrite)
            # The new run's id in the root makes all commits of the old run invisible, in one atomic step.
            storage.put(ROOT, header.to_bytes())
            for part in PARTS:
                storage.delete_prefix(part)
            complete_parts(storage)
        except BaseException:
            if fresh:
                _remove(storage)
            lock.release()
            raise
    return lock


def check_destination(
    path: str | os.PathLike[str], mode: str | None, storage_options: StorageOptions = None
) -> None:
    """Say before training whether a ledger can be begun or gone on with at `path`; touches nothing.

    Args:
        path: where the ledger is to be.
        mode: None for a new one, "append" to go on with one if it is there, "overwrite" to replace one.
        storage_options: how to reach an object store; see `storage_at`.

    Raises:
        LedgerExistsError: what is there may not be replaced or appended to.
        UnsupportedFormatError, CorruptLedgerError: the ledger to go on with cannot be read.
    """
    storage = storage_at(path, storage_options)
    if mode != "append":
        _is_empty(storage, overwrite=mode == "overwrite")
    elif not _is_free(storage):
        try:
            read_header(storage)
        except LedgerNotFoundError as error:
            raise _foreign(storage, error) from error


def holds_nothing(path: str | os.PathLike[str], storage_options: StorageOptions = None) -> bool:
    """Whether a ledger can only be begun at `path`: nothing is there, or what a killed creation left."""
    return _is_free(storage_at(path, storage_options))


def _is_free(storage: Storage) -> bool:
    if not storage.exists():
        return True
    # A creation that was killed leaves its lock and perhaps half a root.
    return storage.is_folder() and all(
        name in (LOCK, LEASE) or is_half_group(name) for name in storage.names("")
    )


def _is_empty(storage: Storage, *, overwrite: bool) -> bool:
    """Whether nothing is there; False where a ledger of ours may be replaced; LedgerExistsError otherwise."""
    if _is_free(storage):
        return True
    try:
        header = read_header(storage)
    except GradtraceError as error:
        raise _foreign(storage, error) from error
    if not overwrite:
        raise LedgerExistsError(
            f"{storage.location} already holds the ledger of run {header.run_id}",
            remedy='pass mode="append" to go on with it or mode="overwrite" to replace it',
        )
    if storage.is_link():
        raise LedgerExistsError(
            f"{storage.location} is a symbolic link, which is never replaced", remedy="name what it points to"
        )
    return False


def _foreign(storage: Storage, error: GradtraceError) -> LedgerExistsError:
    return LedgerExistsError(
        f"{storage.location} exists and is no readable ledger, so it is left alone",
        expected="a new path, an empty directory or a ledger",
        got=error.message,
        remedy="choose another path",
    )


def _remove(storage: Storage) -> None:
    # The lock's file goes while it is still held: filelock notices a lock on a file without a name.
    for part in (ROOT, *PARTS, LOCK, LEASE):
        with suppress(GradtraceError):
            storage.delete_prefix(part)
