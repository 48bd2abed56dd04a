"""Every criterion from totals that come block by block, whether it was written for that or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.evidence.definition import Criterion, Finding, Gathering, Judge, Study
from gradtrace.ledger.walk import OPENING

__all__ = ["gathering_of"]

Array: TypeAlias = NDArray[np.float64]


def gathering_of(
    criterion: Criterion, study: Study, options: Mapping[str, Any]
) -> tuple[tuple[str, ...], Callable[[str], Gathering]]:
    """What is wanted in blocks, accumulators or the opening balance, and what begins a parameter's gathering.

    Raises what `Criterion.judge` raises.
    """
    judge = criterion.judge(study, options)
    if criterion.gathering is not None:
        asked = (*criterion.needs, OPENING) if criterion.opening else criterion.needs
        return asked, criterion.gathering(study, **options)
    defaults = criterion.options
    if criterion.whole is not None and not any(options.get(one, defaults[one]) for one in criterion.whole):
        return criterion.needs, lambda name: _ByBlock(criterion, study, options, name)
    return (), lambda name: _Whole(judge, name)


class _Whole:
    """Reads by itself what it needs, when it is asked."""

    def __init__(self, judge: Judge, name: str) -> None:
        self.judge, self.name = judge, name

    def add(self, part: slice, totals: Mapping[str, NDArray[Any]]) -> None:
        pass

    def finding(self) -> Finding:
        return self.judge(self.name)


class _ByBlock:
    """Asks the judge for one block after the other, each as if it were a parameter."""

    def __init__(self, criterion: Criterion, study: Study, options: Mapping[str, Any], name: str) -> None:
        self.criterion, self.study, self.options, self.name = criterion, study, options, name
        weight = study.weights[name]
        self.shape, self.weight = weight.shape, weight.reshape(-1)
        self.found: dict[str, Array] = {}

    def add(self, part: slice, totals: Mapping[str, NDArray[Any]]) -> None:
        records: Any = None
        if self.study.records is not None:
            records = {self.name: _Part(self.study.records[self.name], totals)}
        study = replace(self.study, weights={self.name: self.weight[part]}, records=records)
        finding = self.criterion.judge(study, self.options)(self.name)
        for what, values in finding._asdict().items():
            if values is not None:
                whole = self.found.setdefault(what, np.empty(math.prod(self.shape)))
                whole[part] = values

    def finding(self) -> Finding:
        return Finding(**{what: values.reshape(self.shape) for what, values in self.found.items()})


class _Part:
    """A record whose totals are those of a block."""

    def __init__(self, record: Any, totals: Mapping[str, NDArray[Any]]) -> None:
        self._record, self._totals = record, totals

    def __getattr__(self, name: str) -> Any:
        return self._totals[name] if name in self._totals else getattr(self._record, name)
