"""`overhead=`: the recorder measures its own share of a step, and takes sums on fewer steps until it fits.

At every step events are counted, which costs c0; a sampled step takes the sums too and costs c1. With T the
time from step to step, the stride is the least power of two k for which c0 + (c1 - c0) / k <= overhead * T,
all three as medians. It is chosen where an entry begins and holds for the whole entry. The first window of a
recording is an entry of its own, at a stride of two, to learn c0 and c1 from.

What the ledger's threads take, per step, is taken off `overhead` first; a quarter of it until that is known.
Where evidence below the step is taken, a watched step takes w longer than another; then one step in m is
watched, the least power of two for which w / m is at most half of overhead * T. What that leaves is for sums.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from statistics import median
from time import perf_counter

import torch

from gradtrace.errors import InvalidValueError
from gradtrace.kernels.accumulate import MOST_STEPS
from gradtrace.recorder.sampling import drawn

__all__ = ["Budget", "check_overhead"]

_log = logging.getLogger(__name__)

# Further apart, samples save next to nothing: what is left are the events.
_WIDEST = 64
# Steps at the very beginning that are not measured, and how many are needed before anything is concluded.
_WARM_UP, _ENOUGH = 3, 8
_KEPT = 512
_SOME, _RAREST = 4, 1 << 16
# One part in so many is left to the ledger's threads until they have been timed.
_RESERVED = 4


def check_overhead(overhead: float | None) -> None:
    """Raise an InvalidValueError unless `overhead` is None or a share."""
    if overhead is not None and not (isinstance(overhead, float | int) and 0.0 < overhead < 1.0):
        raise InvalidValueError(
            "overhead",
            expected="None, or the share of a step that recording may take, in (0, 1)",
            got=repr(overhead),
            remedy="pass e.g. overhead=0.01",
        )


class Budget:
    """Chooses the stride of each entry; without an `overhead` that is 1, and nothing is measured.

    Args:
        overhead: share of a step that recording may take, or None.
        window_steps: longest window; its 16-bit counts bound the stride.
        below_every: one step of this many is watched for evidence below the step, at most; 0: none is.

    Attributes:
        every: one step of this many is watched now.
        stride: of the entry that is open.
        learning: whether the open entry is the one to learn from.
        background: seconds a step that the ledger's threads take, or None where that is not known yet.
    """

    def __init__(self, overhead: float | None, window_steps: int, below_every: int = 0) -> None:
        most = min(_WIDEST, MOST_STEPS // window_steps)
        self._overhead = overhead
        self._strides = [1 << power for power in range(most.bit_length())]
        self._costs: dict[bool, deque[float]] = {True: deque(maxlen=_KEPT), False: deque(maxlen=_KEPT)}
        self._intervals: deque[float] = deque(maxlen=_KEPT)
        self._watched: deque[float] = deque(maxlen=_KEPT)
        # Steps that are not watched are needed to tell what a watched one costs.
        self._least = max(below_every, _SOME) if below_every and overhead is not None else below_every
        self.every = self._least
        self._on_device: deque[tuple[bool, float, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._last: float | None = None
        self._seen = 0
        self._said = False
        self.learning = overhead is not None
        self.background: float | None = None
        self.stride = self._strides[min(1, len(self._strides) - 1)] if self.learning else 1

    def weight(self, step: int) -> int:
        """What the sums of this step are to be weighted by; 0: count its events only."""
        return self.stride if drawn(step, self.stride) else 0

    @contextmanager
    def measuring(
        self, began: float, weight: int, device: torch.device, watched: bool = False
    ) -> Iterator[None]:
        """Measure one step's recording, which began at `began` (perf_counter) and ends with the context.

        `watched`: evidence below the step was taken since the step before.
        Kernels on CUDA are timed by events, which are read when they are over: nothing waits for the device.
        """
        if self._overhead is None:
            yield
            return
        interval = began - (began if self._last is None else self._last)
        if self._seen > _WARM_UP and not watched:
            self._intervals.append(interval)
        self._last = began
        self._seen += 1
        marks: list[torch.cuda.Event] = []
        if device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in "ab"]  # type: ignore[no-untyped-call]
        if marks:
            marks[0].record()
        yield
        if marks:
            marks[1].record()
        seconds = perf_counter() - began
        if self._seen <= _WARM_UP:
            return
        if watched:
            self._watched.append(interval + seconds)
        elif marks:
            self._on_device.append((weight > 0, seconds, marks[0], marks[1]))
        else:
            self._costs[weight > 0].append(seconds)
        while self._on_device and self._on_device[0][3].query():  # type: ignore[no-untyped-call]
            sampled, host, first, last = self._on_device.popleft()
            # Host time may hide behind the device's: taken as if it did not.
            self._costs[sampled].append(host + first.elapsed_time(last) / 1e3)

    def brought(self) -> tuple[int, int, bool]:
        """What this rank brings to the choice for the next entry: stride, `every`, whether it has learned."""
        return *self._choice(), self._measured() is not None

    @staticmethod
    def agreed(parts: Sequence[Sequence[int]]) -> tuple[int, int, bool]:
        """The one choice for all ranks: what samples least of all, and whether all have learned."""
        return max(part[0] for part in parts), max(part[1] for part in parts), all(part[2] for part in parts)

    def begin_entry(self, stride: int, every: int, learned: bool) -> None:
        """Sample the entry that begins now like this."""
        self.stride, self.every = stride, every
        self.learning = self._overhead is not None and not learned

    def _choice(self) -> tuple[int, int]:
        """Stride and `every` to go on with, by what was measured here; as now where that is too little."""
        at = self._measured()
        if self._overhead is None or at is None:
            return self.stride, self.every
        every, left = self.every, self._overhead
        left -= left / _RESERVED if self.background is None else self.background / at[2]
        if self._watched:
            extra = max(0.0, median(self._watched) - at[1] - at[2])
            needed = ceil(extra / (self._overhead / 2 * at[2]))
            every = min(max(self._least, 1 << max(0, needed - 1).bit_length()), _RAREST)
            left -= extra / every / at[2]
        return self._stride_within(left, at), every

    def _stride_within(self, share: float, at: tuple[float, float, float]) -> int:
        fitting = [stride for stride in self._strides if self._share(stride, *at) <= share]
        if not fitting and not self._said:
            self._said = True
            _log.warning(
                "counting events alone takes %.2f%% of a step, more than the %.2f%% that overhead=%g leaves "
                "to it: it goes on at every step, and sums are taken on one in %d",
                100 * at[0] / at[2],
                100 * max(0.0, share),
                self._overhead,
                self._strides[-1],
            )
        return fitting[0] if fitting else self._strides[-1]

    def _measured(self) -> tuple[float, float, float] | None:
        """Seconds: of a step without sums, of one with sums, and from step to step."""
        counting, adding = self._costs[False], self._costs[True]
        if len(self._intervals) < _ENOUGH or not adding:
            return None
        # At a stride of one, since the beginning, every step has sums: a guess from the bytes touched.
        least = median(counting) if counting else median(adding) * 8 / 28
        return least, max(least, median(adding)), median(self._intervals)

    def _share(self, stride: int, counting: float, adding: float, interval: float) -> float:
        return (counting + (adding - counting) / stride) / interval
