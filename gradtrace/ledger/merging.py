"""Merging the entries of a ledger that no one writes just now."""

from __future__ import annotations

import os
from collections.abc import Collection

from gradtrace.ledger.location import StorageOptions
from gradtrace.ledger.retention import cell_of, plan_merges
from gradtrace.ledger.writer import LedgerWriter

__all__ = ["cell_of", "merge_ledger", "plan_merges"]


def merge_ledger(
    path: str | os.PathLike[str],
    keep_steps: Collection[int] | None = None,
    *,
    storage_options: StorageOptions = None,
) -> int:
    """Join older entries of the ledger at `path` and return how many were joined; totals stay what they are.

    Args:
        path: where the ledger lies.
        keep_steps: the steps of checkpoints that may still be resumed; None for all that were ever saved.
            From any other step but 0 and the end, resuming may become impossible.
        storage_options: how to reach an object store; see `Ledger.open`.

    Raises:
        LedgerNotFoundError, UnsupportedFormatError, CorruptLedgerError, LedgerBusyError: as
            `LedgerWriter.reopen`.
        InvalidValueError, StateError, StorageError: as `LedgerWriter.merge`.
    """
    with LedgerWriter.reopen(path, storage_options=storage_options) as writer:
        return writer.merge(keep_steps)
