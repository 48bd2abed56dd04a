"""The open entry on the host: windows added up, until they are committed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradtrace.kernels.window_into_entry import EntryTotals, WindowTotals, add_window
from gradtrace.ledger.format import ACCUMULATORS
from gradtrace.ledger.sampling import Sampling
from gradtrace.recorder.below.entry_sums import EntrySums
from gradtrace.recorder.decoys import Decoys
from gradtrace.recorder.marks import Marks, counts_of, packed, skips
from gradtrace.recorder.sampling import drawn_in
from gradtrace.recorder.updates import StepRecord, run_lengths
from gradtrace.recorder.window import HostWindow

__all__ = ["OpenEntry"]


class OpenEntry:
    """Sums over the windows of one entry, flat over the N dependencies that this rank records.

    The formula is in `gradtrace.kernels.window_into_entry`.

    Attributes:
        arrays: the sums, by accumulator.
        below: the evidence of its watched steps, where that is recorded; its arrays are among `arrays`.
        follows_checkpoint: whether a checkpoint was saved at `begin`.
        marks: for each window, what its steps did to the parameters; see `recorder.marks`.
        sampling: which part of the steps the sums were taken from.
    """

    def __init__(
        self,
        begin: int,
        size: int,
        below: EntrySums | None = None,
        *,
        decoys: Decoys | None = None,
        products: bool = False,
    ) -> None:
        self.begin = begin
        self.end = begin
        self.windows = 0
        self.below = below
        self.follows_checkpoint = False
        self.arrays = {name: np.zeros(size, dtype) for name, dtype in ACCUMULATORS.items()}
        self.arrays |= {} if below is None else below.arrays
        wanted = ("decoy_sum",) * (decoys is not None) + ("grad_weight",) * products
        self.arrays |= {name: np.zeros(size, np.float32) for name in wanted}
        self._decoys = decoys
        self.marks: list[str] = []
        self.sampling = Sampling(1, 0)
        self._records: list[StepRecord] = []

    def add(self, window: HostWindow, end: int, records: Sequence[StepRecord], stride: int = 1) -> None:
        """Add one closed window whose last step is `end` - 1; `records` holds one record a step.

        `stride` is that of its sums. An entry has one stride, unless it grew past a cut.
        """
        arrays = self.arrays
        totals = WindowTotals(*(tensor.numpy() for tensor in window.totals))
        add_window(EntryTotals(**{name: arrays[name] for name in EntryTotals._fields}), totals)
        if self._decoys is not None:
            self._decoys.add(arrays["decoy_sum"], totals.grad_sum, end)
        if window.grad_weight is not None:
            arrays["grad_weight"] += window.grad_weight.numpy()
        flags = window.flags.numpy()[: len(records)]
        self.marks.append(packed(flags, [record.missing for record in records]))
        self._records += records
        sampled = Sampling(stride, drawn_in(self.end, end, stride))
        self.sampling = self.sampling + sampled if self.windows else sampled
        self.windows += 1
        self.end = end

    def extend(self, later: OpenEntry) -> None:
        """Add an entry that begins where this one ends, of the same layout."""
        for name, values in self.arrays.items():
            values += later.arrays[name]
        if self.below is not None and later.below is not None:
            self.below.count(later.below)
        self.marks += later.marks
        self._records += later._records
        self.sampling = self.sampling + later.sampling if later.windows else self.sampling
        self.windows += later.windows
        self.end = later.end

    def details(self, marks: Marks) -> dict[str, object]:
        """The JSON part of the commit, given the marks of all ranks: counts, and the optimizer's updates."""
        # A step that the fp16 scaler skipped moved no weight: it is no update.
        moved = [one for one, skip in zip(self._records, skips(marks), strict=True) if not skip]
        below = {} if self.below is None else self.below.details()
        return {"counts": counts_of(marks), "groups": run_lengths(moved), **below}
