"""The folders that every ledger has, and the remains in them of a creation that was killed."""

from __future__ import annotations

from gradtrace.ledger.array_format import GROUP, ROOT
from gradtrace.ledger.paths import COMMITS, ENTRIES, LAYOUTS
from gradtrace.ledger.storage import PARTIAL, Storage

__all__ = ["PARTS", "complete_parts", "is_half_group"]

# Commits first: without them the rest means nothing.
PARTS = (COMMITS, ENTRIES, LAYOUTS)


def complete_parts(storage: Storage) -> None:
    """Make each folder the group that it is to Zarr tools, if it is not; remove groups that are half put."""
    for folder in ("", *PARTS):
        for name in filter(is_half_group, storage.names(folder)):
            storage.delete_prefix(f"{folder}/{name}".removeprefix("/"))
    for part in PARTS:
        if storage.get(f"{part}/{ROOT}") is None:
            storage.put(f"{part}/{ROOT}", GROUP)


def is_half_group(name: str) -> bool:
    """Whether a file of this name is what a killed put of a group's zarr.json leaves."""
    return name.startswith(f"{ROOT}.") and name.endswith(PARTIAL)
