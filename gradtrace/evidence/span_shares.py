"""When dependencies were supported for the first time, and for the last, as shares of each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.growth import support_span

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["SpanShares", "span_shares"]


@dataclass(frozen=True)
class SpanShares:
    """`first[name][k]`: share of a parameter whose first event lies in the entry up to `steps[k]`.

    `last[name][k]`: whose last one does. What either does not add up to never had one. `sizes`: dependencies.
    """

    steps: tuple[int, ...]
    sizes: Mapping[str, int]
    first: Mapping[str, tuple[float, ...]]
    last: Mapping[str, tuple[float, ...]]

    def never(self, name: str) -> float:
        """Share without an event."""
        return max(0.0, 1.0 - sum(self.first[name]))

    def quiet(self, name: str) -> float:
        """Share that had an event, but none in the last entry: support that ended."""
        return sum(self.last[name][:-1])

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)


def span_shares(ledger: Ledger, names: Sequence[str] | None = None) -> SpanShares:
    """First and last support of parameters, by default all of at least two dimensions, one at a time.

    Raises UnknownNameError for a name or events that were not recorded, InvalidValueError for no parameter.
    """
    if "events" not in ledger.accumulators:
        raise UnknownNameError(
            "spans need the accumulator 'events'",
            expected="it in the ledger",
            got=", ".join(ledger.accumulators),
            remedy="record it in the next run",
        )
    chosen = [n for n, one in ledger.items() if len(one.shape) >= 2] if names is None else list(names)
    if not chosen:
        raise InvalidValueError("names", expected="at least one parameter", got="none")
    steps = tuple(entry.end for entry in ledger.entries)
    first, last = {}, {}
    for name in chosen:
        span = support_span(ledger, name)
        first[name], last[name] = _shares(span.first, steps), _shares(span.last, steps)
    return SpanShares(steps, {n: int(np.prod(ledger[n].shape)) for n in chosen}, first, last)


def _shares(ends: NDArray[np.int64], steps: tuple[int, ...]) -> tuple[float, ...]:
    counts = np.bincount(np.searchsorted(steps, ends[ends >= 0]), minlength=len(steps))
    return tuple(float(count) / max(1, ends.size) for count in counts)
