"""Which entries become one: recent ones stay as they are, older ones are joined in ever wider cells."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.boundary import check_boundary
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.merged_details import are_joinable

__all__ = ["cell_of", "checkpoints_of", "entries_left", "plan_merges"]

# A cell is at most 1/_FINENESS as wide as it is old: about _FINENESS + 1 entries each time the age doubles.
_FINENESS = 4
# Counts of steps within an entry stay far from what int32 holds.
_LARGEST_CELL = 2**30


def cell_of(step: int, end: int) -> tuple[int, int]:
    """Return (begin, end) of the cell that holds `step` in a ledger of `end` steps.

    The cell is the widest range [i * 2^k, (i + 1) * 2^k) around the step that lies at least four of its own
    widths before the end; a step with no such range is a cell of its own. As the ledger grows cells only ever
    unite, so that the boundaries that remain do not depend on when merges were made.
    """
    width = 1
    while width < _LARGEST_CELL and (step // (2 * width) + 1 + _FINENESS) * 2 * width <= end:
        width *= 2
    begin = step // width * width
    return begin, begin + width


def checkpoints_of(entries: Iterable[Entry]) -> tuple[int, ...]:
    """Return the steps at which the entries say that a checkpoint was saved."""
    return tuple(entry.begin for entry in entries if entry.details.get("follows_checkpoint"))


def entries_left(steps: int, entry_steps: int) -> int:
    """Return how many entries of `entry_steps` steps a run of `steps` keeps where none is protected."""
    left, begin = 0, 0
    while begin < steps:
        _, cell_end = cell_of(begin, steps)
        begin += max(1, -(-(cell_end - begin) // entry_steps)) * entry_steps
        left += 1
    return left


def plan_merges(
    entries: Sequence[Entry], protected: Collection[int] | None = None
) -> tuple[tuple[Entry, ...], ...]:
    """Return the runs of neighbours, two or more each, that are to become one entry each.

    Args:
        entries: all live entries, in order.
        protected: steps where an entry ends and must go on ending; None for all those where, by their
            details, a checkpoint was saved.

    Neighbours that begin in one cell are joined, unless a protected step lies between them, their layouts
    differ, or one holds details that could not be told again from a joined entry.

    Raises:
        InvalidValueError: no entry ends at a protected step; the message names the nearest where one does.
    """
    if protected is None:
        protected = checkpoints_of(entries)
    if not isinstance(protected, Collection):
        raise InvalidValueError("protected steps", expected="a collection of steps", got=repr(protected)[:80])
    for step in protected:
        check_boundary("protected step", step, entries)
    return tuple(run for run in _runs(entries, frozenset(protected)) if len(run) > 1)


def _runs(entries: Sequence[Entry], protected: frozenset[int]) -> Iterator[tuple[Entry, ...]]:
    run: list[Entry] = []
    for entry in entries:
        if run and (entry.begin in protected or not _belong(run[-1], entry, entries[-1].end)):
            yield tuple(run)
            run = []
        run.append(entry)
    if run:
        yield tuple(run)


def _belong(first: Entry, second: Entry, end: int) -> bool:
    return (
        first.layout == second.layout
        and cell_of(first.begin, end) == cell_of(second.begin, end)
        and are_joinable(first.details, second.details)
    )
