"""Under-trained tokens: which rows of an embedding were never, or hardly ever, used in training.

A lookup gives a gradient to the rows that it reads and an exact zero to all others, so a row was used in as
many steps as it had events. The ledger counts those at every step, also where `overhead=` takes sums on some
steps only, and no weight decay reaches them. A row of `padding_idx` never trains, and counts as never used.

Where an output head shares the weight (tied), every row has a gradient in every step, used or not: then
lookups are counted, which `below="inputs"` records on its watched steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError, UnsupportedError
from gradtrace.evidence.given_scores import checked_share

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["Counted", "RowUse", "embeddings", "undertrained"]

Counts: TypeAlias = NDArray[np.int64]
Counted: TypeAlias = Literal["events", "lookups"]


@dataclass(frozen=True, eq=False)
class RowUse:
    """How much each of the V rows of an embedding was used; arrays are (V,).

    Attributes:
        name: the parameter.
        counted: "events": `uses` are steps in which the row had a gradient; "lookups": how often it was read.
        steps: steps that were looked at.
        missed: steps that were not; above 0 only for lookups, and then a row of 0 uses may have had some.
        uses: int64.
        first: int64, step at which the first entry with a use ended; -1 where never.
        last: int64, step at which the last entry with a use ended; -1 where never.
        rare: a row used less often than this share of `steps` is rarely used.
        entries: the steps [begin, end) of each entry, within which a first or last use is known to lie.
    """

    name: str
    counted: Counted
    steps: int
    missed: int
    uses: Counts
    first: Counts
    last: Counts
    rare: float
    entries: tuple[tuple[int, int], ...] = ()

    def entry_of(self, end: int) -> tuple[int, int, int] | None:
        """(number, begin, end) of the entry that ended at a step of `first` or `last`; None for -1."""
        spans = enumerate(self.entries)
        return next(((number, *span) for number, span in spans if span[1] == end), None)

    @property
    def never(self) -> NDArray[np.bool_]:
        """Rows without any use."""
        return np.asarray(self.uses == 0)

    @property
    def rarely(self) -> NDArray[np.bool_]:
        """Rows with some use, in or for less than the share `rare` of the steps."""
        return np.asarray((self.uses > 0) & (self.uses < self.rare * self.steps))

    @property
    def always(self) -> bool:
        """Whether every row had a gradient in every step, as positions have and weights of a head."""
        return self.counted == "events" and self.steps > 0 and bool((self.uses == self.steps).all())

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; rows by number, those rarely used with their figures.

        `first_entry` and `last_entry`: its number, and the steps from and up to which it goes.
        """

        def entry(end: int) -> dict[str, int] | None:
            found = self.entry_of(end)
            return None if found is None else dict(zip(("entry", "begin", "end"), found, strict=True))

        return {
            "name": self.name,
            "counted": self.counted,
            "steps": self.steps,
            "missed_steps": self.missed,
            "rows": int(self.uses.size),
            "rare": self.rare,
            "never": np.flatnonzero(self.never).tolist(),
            "rarely": [
                {"row": int(row), "uses": int(self.uses[row])}
                | {"first": int(self.first[row]), "last": int(self.last[row])}
                | {"first_entry": entry(int(self.first[row])), "last_entry": entry(int(self.last[row]))}
                for row in np.flatnonzero(self.rarely)
            ],
        }


def embeddings(ledger: Ledger) -> tuple[str, ...]:
    """Names of the parameters that are embeddings."""
    return tuple(name for name, one in ledger.items() if one.info.role == "embedding")


def undertrained(ledger: Ledger, name: str, *, rare: float = 0.01, by: Counted | None = None) -> RowUse:
    """Count the uses of every row of the embedding `name`; see `embeddings` for the names.

    `rare`: the share of the steps, in (0, 1], below which a row counts as rarely used. `by`: what is counted;
    None takes the events, or lookups where the weight has several names, as one that is tied to a head has.

    Raises UnknownNameError for a name or lookups that were not recorded, UnsupportedError for a parameter
    that is no embedding and for a tied one without lookups, InvalidValueError for arguments out of range.
    """
    share = checked_share("rare", rare, "rare=0.01")
    if by not in (None, "events", "lookups"):
        raise InvalidValueError("by", expected="events or lookups", got=repr(by))
    record = ledger[name]
    modules = tuple(_lookup_modules(ledger, name))
    if (record.info.role != "embedding" and not modules) or len(record.shape) < 2:
        raise UnsupportedError(
            f"rows of {name!r}",
            expected="an embedding",
            got=f"a {record.info.role} of {record.info.module_class}",
            remedy=f"this ledger has {', '.join(map(repr, embeddings(ledger))) or 'none'}",
        )
    if by == "lookups" and not modules:
        raise UnknownNameError(
            f"lookups in {name!r}",
            expected="them in the ledger",
            got="none recorded",
            remedy='record the next run with below="inputs"',
        )
    if by is None and record.info.aliases and not modules:
        raise UnsupportedError(
            f"{name!r} is also {', '.join(map(repr, record.info.aliases))}",
            expected="lookups in the ledger, for a head that shares the weight gives every row a gradient",
            got="events only",
            remedy='record the next run with below="inputs"; if no head shares it, pass by="events"',
        )
    lookups = by == "lookups" or (by is None and bool(record.info.aliases))
    uses, first, last = _counted(ledger, name, partial(_lookups, modules) if lookups else _events)
    watched = sum(ledger.inputs[module].watched_steps for module in modules[:1])
    steps = watched if lookups else record.steps
    return RowUse(
        record.name,
        "lookups" if lookups else "events",
        steps,
        max(0, record.steps - steps),
        uses,
        first,
        last,
        share,
        tuple((entry.begin, entry.end) for entry in ledger.entries),
    )


def _counted(
    ledger: Ledger, name: str, count: Callable[[Ledger, str], Counts]
) -> tuple[Counts, Counts, Counts]:
    rows = ledger[name].shape[0]
    uses = np.zeros(rows, np.int64)
    first, last = np.full(rows, -1, np.int64), np.full(rows, -1, np.int64)
    for entry in ledger.entries:
        part = ledger.between(entry.begin, entry.end)
        if name in part:
            seen = count(part, name)
            first[(seen > 0) & (first < 0)] = entry.end
            last[seen > 0] = entry.end
            uses += seen
    return uses, first, last


def _events(part: Ledger, name: str) -> Counts:
    # An element's gradient may vanish by chance: the row was used when any of its elements had one.
    events = part[name].events
    return np.asarray(events.reshape(len(events), -1).max(axis=1, initial=0), np.int64)


def _lookups(modules: Sequence[str], part: Ledger, name: str) -> Counts:
    counts = np.zeros(part[name].shape[0], np.int64)
    for module in modules:
        if module in part.inputs:
            counts += np.rint(part.inputs[module].sum).astype(np.int64)
    return counts


def _lookup_modules(ledger: Ledger, name: str) -> Iterator[str]:
    """Modules whose inputs are rows of this parameter: of its names' modules, those with one-hot inputs."""
    info = ledger[name].info
    for module in dict.fromkeys(one.rpartition(".")[0] for one in (info.name, *info.aliases)):
        if module not in ledger.inputs or not info.shape or ledger.inputs[module].info.size != info.shape[0]:
            continue
        record = ledger.inputs[module]
        # As wide as it is long, a head has as many inputs: but theirs are not all zeros and ones.
        if np.array_equal(record.sum, record.sumsq):
            yield module
