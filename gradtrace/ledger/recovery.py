"""Finding out what exists, and removing what no commit names: the remains of writers that died or failed."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

from gradtrace.ledger.commit import Commit, span_of
from gradtrace.ledger.commit_store import read_commits
from gradtrace.ledger.entry import Void
from gradtrace.ledger.layout_store import StoredLayout, read_layout
from gradtrace.ledger.live import live_commits
from gradtrace.ledger.paths import (
    COMMITS,
    ENTRIES,
    LAYOUTS,
    commit_key,
    entry_prefix,
    is_layout_name,
    parse_span,
    span_name,
)
from gradtrace.ledger.storage import PARTIAL, Storage

__all__ = ["recover", "remove_dead"]


def recover(storage: Storage, run: str, layouts: dict[int, StoredLayout]) -> tuple[Commit | Void, ...]:
    """Return the live commits and the voids, having removed all else. Only the lock's holder may call this.

    Args:
        storage: where the ledger lies.
        run: its run id.
        layouts: those to keep although no commit names them yet; committed ones are added.

    Raises:
        CorruptLedgerError: a commit or a layout is lost or altered. Then nothing is removed: what looks
            uncommitted may be the data of the lost commit.
    """
    commits = read_commits(storage, run)
    live = live_commits(commits)
    for commit in live:
        if commit.entry.layout not in layouts:
            number = commit.entry.layout
            layouts[number] = read_layout(storage, number, commit.layout_digest)
    if len(live) < sum(isinstance(commit, Commit) for commit in commits):
        # A writer that died may not have had the time to make durable what takes the place of the dead.
        storage.sync(COMMITS)
        commits = remove_dead(storage, commits, live)
    _sweep(storage, commits, layouts)
    return commits


def remove_dead(
    storage: Storage, commits: Iterable[Commit | Void], live: Iterable[Commit]
) -> tuple[Commit | Void, ...]:
    """Remove merged and voided entries, whose successors are durable, and return the commits that are left.

    Voids stay: their generation tells later entries apart from those that they took away.
    """
    standing = {span_of(commit) for commit in live}
    left = [one for one in commits if isinstance(one, Void) or span_of(one) in standing]
    dead = [span_of(one) for one in commits if isinstance(one, Commit) and span_of(one) not in standing]
    # All commits before any data: a reader must be able to tell removal from damage, and data without a
    # commit is what the next writer sweeps.
    for span in dead:
        storage.delete_prefix(commit_key(*span))
    for span in dead:
        storage.delete_prefix(entry_prefix(*span))
    return tuple(left)


def _sweep(storage: Storage, commits: Collection[Commit | Void], layouts: Container[int]) -> None:
    named = {span_name(*span_of(commit)) for commit in commits}
    holding = {span_name(*span_of(commit)) for commit in commits if isinstance(commit, Commit)}
    # Only names that a writer of ours makes: files of others that got in here are left alone.
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
