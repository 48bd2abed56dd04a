"""What a criterion costs: seconds, memory at its peak, and the data it read."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

from gradtrace.evidence.definition import Criterion, Study

__all__ = ["Cost", "metered", "reads"]

Result = TypeVar("Result")

WEIGHTS, OPENING, HISTORY, MOMENTS = "final weights", "opening balance", "decay history", "input moments"


@dataclass(frozen=True)
class Cost:
    """Of scoring every parameter once, reading included.

    `seconds`: wall time. `memory`: bytes at the peak above what was in use before, the scores included, as
    tracemalloc counts them in a second pass (numpy's arrays, not what codecs take in C). `reads`: names of
    what it looked at, accumulators under their own; () for nothing.
    """

    seconds: float
    memory: int
    reads: tuple[str, ...]


def metered(work: Callable[[], Result]) -> tuple[Result, float, int]:
    """(result, seconds, bytes at the peak): the work is done twice, timed first and then traced."""
    began = perf_counter()
    result = work()
    seconds = perf_counter() - began
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        if not running:
            tracemalloc.stop()
    return result, seconds, max(0, peak - before)


def reads(study: Study, criterion: Criterion, options: Mapping[str, Any]) -> tuple[str, ...]:
    """What a criterion looks at, seen while it judges the smallest parameter. Of a control's, nothing counts.

    The weights' shapes are all that `random` asks for, and only the study knows that.
    """
    if criterion.kind == "control":
        return ()
    seen: dict[str, None] = {}
    records = study.records
    watched = replace(
        study,
        weights=_Watched(study.weights, lambda _, one: _noted(seen, WEIGHTS, one)),
        records=None if records is None else _Watched(records, lambda _, one: _Record(one, study, seen)),
        inputs=_Watched(study.inputs, lambda _, one: _noted(seen, MOMENTS, one)),
    )
    smallest = min(study.weights, key=lambda name: study.weights[name].size)
    criterion.judge(watched, options)(smallest)
    order = (*sorted(study.accumulators), OPENING, HISTORY, MOMENTS, WEIGHTS)
    return tuple(name for name in order if name in seen)


def _noted(seen: dict[str, None], name: str, value: Any) -> Any:
    seen[name] = None
    return value


class _Watched(Mapping[str, Any]):
    """A mapping whose values go through `watch` on their way out."""

    def __init__(self, inner: Mapping[str, Any], watch: Callable[[str, Any], Any]) -> None:
        self._inner, self._watch = inner, watch

    def __getitem__(self, name: str) -> Any:
        return self._watch(name, self._inner[name])

    def __contains__(self, name: object) -> bool:
        return name in self._inner

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)


class _Record:
    """A parameter's record that notes which of its sums are asked for."""

    def __init__(self, inner: Any, study: Study, seen: dict[str, None]) -> None:
        self._inner, self._study, self._seen = inner, study, seen

    def __getattr__(self, name: str) -> Any:
        known = {"opening": OPENING, "history": HISTORY} | {one: one for one in self._study.accumulators}
        if name in known:
            self._seen[known[name]] = None
        return getattr(self._inner, name)
