"""Which commits count: voids and higher generations take others away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradtrace.errors import CorruptLedgerError
from gradtrace.ledger.commit import Commit
from gradtrace.ledger.entry import Void

__all__ = ["live_commits"]


def live_commits(commits: Iterable[Commit | Void]) -> tuple[Commit, ...]:
    """Return the commits that count, in order of steps.

    A void takes away every commit of a lower generation that ends after the void's begin; of the others, one
    whose steps lie within those of a commit of a higher generation gives way to it.

    Raises:
        CorruptLedgerError: what remains does not run from step 0 on without gap or overlap.
    """
    commits = tuple(commits)
    voids = [commit for commit in commits if isinstance(commit, Void)]
    standing = [
        commit
        for commit in commits
        if isinstance(commit, Commit)
        and not any(void.generation > commit.generation and void.begin < commit.entry.end for void in voids)
    ]
    live = _without_superseded(standing)
    end = 0
    for commit in live:
        if commit.entry.begin != end:
            raise CorruptLedgerError(
                "entries do not join", expected=f"one that begins at step {end}", got=repr(commit.entry)
            )
        end = commit.entry.end
    return tuple(live)


def _without_superseded(commits: Sequence[Commit]) -> list[Commit]:
    live: list[Commit] = []
    for commit in sorted(commits, key=lambda one: (one.entry.begin, -one.entry.end, -one.generation)):
        # In this order whatever covers a commit stands before it, and only the last survivor can reach it.
        above = live[-1] if live else None
        if above is None or above.entry.end < commit.entry.end or above.generation <= commit.generation:
            live.append(commit)
    return live
