"""Steps where an entry ends: the only ones that a run can be resumed from."""

from __future__ import annotations

from collections.abc import Iterable

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.entry import Entry

__all__ = ["check_boundary"]


def check_boundary(what: str, step: object, entries: Iterable[Entry]) -> None:
    """Refuse a step that is neither 0 nor the end of one of the live entries, naming the nearest that is.

    Raises:
        InvalidValueError: `step` is no such step.
    """
    boundaries = [0, *(entry.end for entry in entries)]
    if isinstance(step, int) and not isinstance(step, bool) and step in boundaries:
        return
    number = step if isinstance(step, int) else boundaries[-1]
    nearest = min(boundaries, key=lambda boundary: (abs(boundary - number), boundary))
    raise InvalidValueError(
        what, expected="a step where an entry ends", got=repr(step), remedy=f"the nearest one is {nearest}"
    )
