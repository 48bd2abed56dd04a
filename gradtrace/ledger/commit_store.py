"""Commit objects on disk: listing and reading all of one run."""

from __future__ import annotations

from collections.abc import Iterable

from gradtrace.errors import CorruptLedgerError, InvalidValueError
from gradtrace.ledger.commit import Commit, decode_commit, encode_commit, span_of
from gradtrace.ledger.encoding import reading
from gradtrace.ledger.entry import Void
from gradtrace.ledger.header import FORMAT
from gradtrace.ledger.paths import COMMITS, commit_key, parse_span, span_name
from gradtrace.ledger.storage import Storage

__all__ = ["all_stand", "read_commits", "write_commit"]


def write_commit(storage: Storage, run: str, commit: Commit | Void) -> None:
    """Put the commit object: from here on the entry or void exists."""
    storage.put(commit_key(*span_of(commit)), encode_commit(commit, run=run, version=FORMAT))


def all_stand(storage: Storage, commits: Iterable[Commit | Void]) -> bool:
    """Whether all these commits are still there; that of a merged or voided entry goes before its data."""
    names = frozenset(storage.names(COMMITS))
    return all(f"{span_name(*span_of(commit))}.json" in names for commit in commits)


def read_commits(storage: Storage, run: str) -> tuple[Commit | Void, ...]:
    """Return every commit of this run, live or not; raises CorruptLedgerError for one that is damaged."""
    # One that was merged away between listing and reading: what took its place must be seen.
    while (commits := _commits_listed(storage, run)) is None:
        continue
    return commits


def _commits_listed(storage: Storage, run: str) -> tuple[Commit | Void, ...] | None:
    commits = []
    for name in _settled_names(storage):
        span = parse_span(name.removesuffix(".json")) if name.endswith(".json") else None
        if span is None:
            continue
        key = commit_key(*span)
        raw = storage.get(key)
        if raw is None and name not in storage.names(COMMITS):
            return None
        if raw is None:
            raise CorruptLedgerError(f"{storage.at(key)} cannot be read as a file")
        with reading(f"commit {storage.at(key)}"):
            writer, commit = decode_commit(raw)
            if span_of(commit) != span:
                raise InvalidValueError("steps", expected="those of its name", got=str(span_of(commit)))
        # A commit of a run that this one replaced: left behind when the overwriting was cut short.
        if writer == run:
            commits.append(commit)
    return tuple(commits)


def _settled_names(storage: Storage) -> list[str]:
    # A listing made while a writer commits may hold a later commit and lack an earlier one. Whatever was
    # there before the second listing began is in it, so two equal ones lack nothing.
    names = storage.names(COMMITS)
    while (again := storage.names(COMMITS)) != names:
        names = again
    return names
