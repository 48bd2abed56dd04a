"""A ledger sent to another process: where it lies and which entries are meant, opened again over there."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gradtrace.errors import StateError
from gradtrace.ledger.location import StorageOptions

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["Address", "reopened"]


@dataclass(frozen=True)
class Address:
    """Tells the entries of a ledger apart from all others; `entries` are (begin, end, generation).

    The options may hold credentials: they go from process to process and are never shown or stored.
    """

    path: str
    storage_options: StorageOptions = field(repr=False)
    run_id: str
    entries: tuple[tuple[int, int, int], ...]
    partial: bool


_lock = threading.Lock()
_last: list[tuple[Address, Ledger]] = []


def reopened(address: Address) -> Ledger:
    """Open the very entries again. The ledger opened last is kept, for the tasks that follow.

    Raises:
        StateError: some were merged, voided or replaced meanwhile.
        GradtraceError: what `Ledger.open` raises.
    """
    from gradtrace.ledger.reader import Ledger

    with _lock:
        if _last and _last[0][0] == address:
            return _last[0][1]
        whole = Ledger.open(address.path, storage_options=address.storage_options)
        ledger = whole.with_entries(address.entries, partial=address.partial)
        if whole.run_id != address.run_id or ledger is None:
            raise StateError(
                f"entries of {whole.path} were merged, voided or replaced since it was opened",
                remedy="open the ledger again",
            )
        _last[:] = [(address, ledger)]
        return ledger
