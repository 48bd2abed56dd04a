"""What this machine can do at most, as measured: multiplying and reading, with as many threads as are set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Ceilings", "measured_ceilings"]

_MEGABYTES = (0.25, 1, 4, 16, 64)


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of a large product, and bytes/s of reading as much as many bytes again and again."""

    flops: float
    bytes: tuple[float, ...]
    bytes_per_second: tuple[float, ...]
    one_operator: float
    """Seconds of the smallest linear layer: one operator call."""

    def bound(self, flops: float, moved: float) -> float:
        """Seconds that nothing can beat which needs these FLOPs and reads or writes these bytes once."""
        rate = float(np.exp(np.interp(np.log(moved), np.log(self.bytes), np.log(self.bytes_per_second))))
        return max(flops / self.flops, moved / rate)

    def or_better(self, other: Ceilings) -> Ceilings:
        """The higher of both, measured at another time: whatever disturbs only ever lowers them."""
        rates = tuple(max(pair) for pair in zip(self.bytes_per_second, other.bytes_per_second, strict=True))
        one = min(self.one_operator, other.one_operator)
        return Ceilings(max(self.flops, other.flops), self.bytes, rates, one)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measured_ceilings(seconds: float = 1.0) -> Ceilings:
    """Measure with torch's present number of threads, the best of some calls: a ceiling is never too low."""
    side = 1024
    square = torch.randn(side, side)
    product = _best(lambda: functional.linear(square, square), seconds / 2)
    sizes = tuple(size * 1e6 for size in _MEGABYTES)
    rates = []
    for size in sizes:
        numbers = torch.ones(int(size / 4))
        reads = (numbers.sum, lambda given=numbers: torch.dot(given, given))
        rates.append(size / min(_best(read, seconds / 20) for read in reads))
    one = torch.ones(1, 1)
    calls = sorted(_seconds(lambda: functional.linear(one, one, one[0])) for _ in range(1001))
    return Ceilings(2 * side**3 / product, sizes, tuple(rates), calls[len(calls) // 2])


def _best(function: Callable[[], object], seconds: float) -> float:
    function()
    taken = [_seconds(function)]
    while sum(taken) < seconds:
        taken.append(_seconds(function))
    return min(taken)


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
