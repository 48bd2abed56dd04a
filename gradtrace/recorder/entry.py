"""The open entry on the host: windows added up, until they are committed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradtrace.kernels.accumulate import EVENT, NONFINITE, SEEN, SKIPPED
from gradtrace.ledger.details import COUNTS
from gradtrace.ledger.format import ACCUMULATORS, Layout
from gradtrace.recorder.updates import StepRecord, run_lengths
from gradtrace.recorder.window import HostWindow

__all__ = ["OpenEntry"]


class OpenEntry:
    """Sums over the windows of one entry, flat over the N dependencies that `layout` gives rank 0.

    grad_sum += s, grad_sumsq += q, window_sumsq += s^2, window_votes += sign(s), events += e, votes += v,
    where s, q, e, v are one window's sums of g, g^2, [|g| > threshold] and sign(g).
    """

    def __init__(self, begin: int, number: int, layout: Layout) -> None:
        self.begin = begin
        self.end = begin
        self.number = number
        self.layout = layout
        self.windows = 0
        size, parameters = layout.size(0), len(layout.parameters)
        self.arrays = {name: np.zeros(size, dtype) for name, dtype in ACCUMULATORS.items()}
        self._work = np.empty(size, np.float32)
        self._counts = {name: np.zeros(parameters, np.int64) for name in COUNTS}
        self._records: list[StepRecord] = []

    def add(self, window: HostWindow, end: int, records: Sequence[StepRecord]) -> None:
        """Add one closed window whose last step is `end` - 1; `records` holds one record a step."""
        grad_sum, grad_sumsq, events, votes = (tensor.numpy() for tensor in window.totals)
        arrays = self.arrays
        arrays["grad_sum"] += grad_sum
        arrays["grad_sumsq"] += grad_sumsq
        np.add(arrays["events"], events, out=arrays["events"], casting="unsafe")
        arrays["votes"] += votes
        np.multiply(grad_sum, grad_sum, out=self._work)
        arrays["window_sumsq"] += self._work
        np.sign(grad_sum, out=self._work)
        np.add(arrays["window_votes"], self._work, out=arrays["window_votes"], casting="unsafe")
        self._count(window.flags.numpy()[: len(records)], records)
        self.windows += 1
        self.end = end

    def details(self) -> dict[str, object]:
        """The JSON part of the commit: per-parameter step counts and the optimizer's updates."""
        counts = {name: values.tolist() for name, values in self._counts.items()}
        return {"counts": counts, "groups": run_lengths(self._records)}

    def _count(
        self, flags: np.ndarray[tuple[int, int], np.dtype[np.int32]], records: Sequence[StepRecord]
    ) -> None:
        seen, skipped = (flags & SEEN) > 0, (flags & SKIPPED) > 0
        self._counts["steps"] += seen.sum(axis=0)
        self._counts["skipped"] += skipped.sum(axis=0)
        self._counts["nonfinite"] += ((flags & NONFINITE) > 0).sum(axis=0)
        self._counts["zero"] += (seen & ((flags & (EVENT | NONFINITE)) == 0)).sum(axis=0)
        for record in records:
            self._counts["missing"][list(record.missing)] += 1
        # A step that the fp16 scaler skipped moved no weight: it is no update.
        self._records += [one for one, row in zip(records, skipped, strict=True) if not row.any()]
