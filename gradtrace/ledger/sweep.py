"""Removing what no commit names: the remains of writers that died or failed."""

from __future__ import annotations

from collections.abc import Collection, Container

from gradtrace.ledger.commit_store import span_of
from gradtrace.ledger.entry import Commit, Void
from gradtrace.ledger.paths import (
    COMMITS,
    ENTRIES,
    LAYOUTS,
    is_layout_name,
    parse_span,
    span_name,
)
from gradtrace.ledger.storage import PARTIAL, Storage

__all__ = ["sweep"]


def sweep(storage: Storage, commits: Collection[Commit | Void], layouts: Container[int]) -> None:
    """Remove every commit, entry and layout that is not among these. Files of others are left alone."""
    named = {span_name(*span_of(commit)) for commit in commits}
    holding = {span_name(*span_of(commit)) for commit in commits if isinstance(commit, Commit)}
    for name in storage.names(COMMITS):
        stem = name.removesuffix(".json")
        if name.endswith(PARTIAL) or (stem != name and parse_span(stem) and stem not in named):
            storage.delete_prefix(f"{COMMITS}/{name}")
    for name in storage.names(ENTRIES):
        if parse_span(name) and name not in holding:
            storage.delete_prefix(f"{ENTRIES}/{name}")
    for name in storage.names(LAYOUTS):
        if is_layout_name(name) and int(name) not in layouts:
            storage.delete_prefix(f"{LAYOUTS}/{name}")
