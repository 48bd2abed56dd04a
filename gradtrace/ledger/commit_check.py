"""Whether a commit fits its ledger's header and its layout, before anything relies on it."""

from __future__ import annotations

from gradtrace.errors import CorruptLedgerError
from gradtrace.ledger.commit import Commit
from gradtrace.ledger.details import check_details
from gradtrace.ledger.encoding import reading
from gradtrace.ledger.header import Header
from gradtrace.ledger.layout_store import StoredLayout
from gradtrace.ledger.paths import rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["check_commit"]


def check_commit(storage: Storage, header: Header, commit: Commit, stored: StoredLayout) -> None:
    """Raise CorruptLedgerError for another layout, details that are none, or an array that is not named."""
    entry = commit.entry
    where = f"commit of entry {entry.begin}-{entry.end} (generation {entry.generation}) in {storage.location}"
    if commit.layout_digest != stored.digest:
        raise CorruptLedgerError(f"{where} knows another layout {entry.layout}")
    with reading(where):
        check_details(entry.details, len(stored.layout.parameters), len(stored.layout.inputs))
    for rank in range(len(stored.layout.ranks)):
        for accumulator in header.accumulators:
            name = f"{rank_name(rank)}/{accumulator}"
            if name not in commit.arrays:
                raise CorruptLedgerError(f"{where} names no array {name}")
