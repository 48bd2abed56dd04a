"""How support and what is confirmed as learned grew during training, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.drift import DRIFT, drift_finding
from gradtrace.evidence.given_scores import checked_share
from gradtrace.evidence.local_fdr import local_discoveries

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger, ParameterRecord

__all__ = ["Growth", "Span", "growth", "support_span"]

Array: TypeAlias = NDArray[np.float64]


class Span(NamedTuple):
    """When a parameter's dependencies were supported: int64 arrays of its shape, -1 where never.

    `first`: the step at which the first entry with an event ended; `last`: at which the last one did.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]


@dataclass(frozen=True)
class Growth:
    """Shares of each parameter's dependencies at every entry's end: `supported[name][k]` at `steps[k]`.

    `supported`: with an event so far; `confirmed`: with a drift over all steps so far that is confirmed at
    the false discovery rate `q`, None while there are fewer than two windows. `sizes`: dependencies.
    """

    q: float
    steps: tuple[int, ...]
    sizes: Mapping[str, int]
    supported: Mapping[str, tuple[float, ...]]
    confirmed: Mapping[str, tuple[float | None, ...]]

    def together(self) -> tuple[tuple[float, ...], tuple[float | None, ...]]:
        """(supported, confirmed) of all parameters' dependencies; None where one has no answer yet."""
        whole = max(1, sum(self.sizes.values()))
        supported, confirmed = [], []
        for k in range(len(self.steps)):
            supported.append(sum(self.sizes[n] * self.supported[n][k] for n in self.sizes) / whole)
            known = [(self.sizes[n], self.confirmed[n][k]) for n in self.sizes]
            shares = [size * share for size, share in known if share is not None]
            confirmed.append(sum(shares) / whole if len(shares) == len(known) else None)
        return tuple(supported), tuple(confirmed)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, with those of all parameters together."""
        supported, confirmed = self.together()
        return asdict(self) | {"together": {"supported": supported, "confirmed": confirmed}}


def growth(ledger: Ledger, names: Sequence[str] | None = None, *, q: float = 0.1) -> Growth:
    """Support and confirmed drift of parameters, by default all of at least two dimensions.

    Every array on disk is read once, one parameter at a time in memory. Raises UnknownNameError for a name or
    an accumulator that was not recorded, InvalidValueError for no parameter and for q outside (0, 1].
    """
    rate = checked_share("q", q, "q=0.1")
    lacking = DRIFT.missing(ledger.accumulators)
    if lacking:
        raise UnknownNameError(
            f"growth needs the accumulator {lacking[0]!r}",
            expected="it in the ledger",
            got=", ".join(ledger.accumulators),
            remedy="record it in the next run",
        )
    chosen = [n for n, one in ledger.items() if len(one.shape) >= 2] if names is None else list(names)
    if not chosen:
        raise InvalidValueError("names", expected="at least one parameter", got="none")
    parts = _parts(ledger)
    supported, confirmed = {}, {}
    for name in chosen:
        pairs = list(_shares(parts, name, tuple(ledger[name].shape), rate))
        supported[name] = tuple(pair[0] for pair in pairs)
        confirmed[name] = tuple(pair[1] for pair in pairs)
    steps = tuple(entry.end for entry in ledger.entries)
    return Growth(rate, steps, {n: int(np.prod(ledger[n].shape)) for n in chosen}, supported, confirmed)


def support_span(ledger: Ledger, name: str) -> Span:
    """First and last entry's end with an event, for every dependency of a parameter."""
    shape = tuple(ledger[name].shape)
    first, last = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    for entry, part in zip(ledger.entries, _parts(ledger), strict=True):
        if name in part:
            seen = np.asarray(part[name].events) > 0
            first[seen & (first < 0)] = entry.end
            last[seen] = entry.end
    return Span(first, last)


def _parts(ledger: Ledger) -> list[Ledger]:
    return [ledger.between(entry.begin, entry.end) for entry in ledger.entries]


def _shares(
    parts: Sequence[Ledger], name: str, shape: tuple[int, ...], q: float
) -> Iterator[tuple[float, float | None]]:
    sums = [np.zeros(shape) for _ in range(4)]
    windows = steps = 0
    for part in parts:
        if name in part:
            record = part[name]
            for total, recorded in zip(sums, _recorded(record), strict=True):
                total += recorded
            windows, steps = windows + record.windows, steps + record.steps
        supported = float(np.mean(sums[-1] > 0)) if sums[-1].size else 0.0
        confirmed = None
        if windows >= 2:
            pvalues = drift_finding(*sums, windows=windows, steps=steps).pvalue
            confirmed = float(np.mean(local_discoveries(pvalues, q))) if pvalues is not None else None
        yield supported, confirmed if sums[-1].size else 0.0


def _recorded(record: ParameterRecord) -> tuple[Any, ...]:
    return record.grad_sum, record.window_sumsq, record.grad_sumsq, record.events
