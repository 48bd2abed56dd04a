"""Entries and voids: what a ledger is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as member
from types import MappingProxyType
from typing import Any

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import integer
from gradtrace.ledger.paths import LARGEST_GENERATION, LARGEST_LAYOUT, LARGEST_STEP
from gradtrace.ledger.sampling import ALL_STEPS, Sampling

__all__ = ["Entry", "Void"]


@dataclass(frozen=True)
class Entry:
    """A committed record of whole windows over the steps [begin, end).

    Attributes:
        begin: first step.
        end: one past the last step.
        generation: rank among commits of the same steps; the higher one counts.
        layout: number of the layout that its flat arrays follow.
        windows: windows it holds.
        details: what the recorder added, in the order of the layout's parameters.
        sampling: which part of the steps the sums were taken from; all of them where none is given.
    """

    begin: int
    end: int
    generation: int
    layout: int
    windows: int
    details: Mapping[str, Any] = member(hash=False, repr=False)
    sampling: Sampling = ALL_STEPS

    def __post_init__(self) -> None:
        _set_span(self)
        object.__setattr__(self, "layout", integer(self.layout, "layout", most=LARGEST_LAYOUT))
        object.__setattr__(self, "windows", integer(self.windows, "windows"))
        if not isinstance(self.details, Mapping):
            raise InvalidValueError("details", expected="a mapping", got=type(self.details).__name__)
        object.__setattr__(self, "details", MappingProxyType(dict(self.details)))
        if self.sampling is ALL_STEPS:
            object.__setattr__(self, "sampling", Sampling(1, self.steps))
        self.sampling.check(self.steps)

    @property
    def steps(self) -> int:
        """Steps it covers."""
        return self.end - self.begin


@dataclass(frozen=True)
class Void:
    """A commit that makes every step from `begin` on of lower generations not have happened."""

    begin: int
    end: int
    generation: int

    def __post_init__(self) -> None:
        _set_span(self)


def _set_span(span: Entry | Void) -> None:
    begin = integer(span.begin, "begin", most=LARGEST_STEP)
    object.__setattr__(span, "begin", begin)
    object.__setattr__(span, "end", integer(span.end, "end", least=begin + 1, most=LARGEST_STEP))
    object.__setattr__(span, "generation", integer(span.generation, "generation", most=LARGEST_GENERATION))
