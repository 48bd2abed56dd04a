"""What a recording will need on disk, on the host and on the device, known before its first step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gradtrace.ledger.format import ACCUMULATORS, Layout
from gradtrace.ledger.inputs import INPUT_MOMENTS
from gradtrace.ledger.retention import entries_left

__all__ = ["Needs", "RankNeeds", "needs_of", "shown_size"]

# Device and host buffers of a window: grad_sum and grad_sumsq in 4 bytes, events and votes in 2.
_WINDOW = 12
# What every element of an accumulator and of the opening balance takes, in memory and on disk.
_ELEMENT = 4
_USUAL_STEPS = 100_000


@dataclass(frozen=True)
class RankNeeds:
    """What one rank needs, in bytes.

    Attributes:
        device: the open window; 0 without a GPU.
        watched: what a watched step takes while it lasts, on the device or, without a GPU, on the host.
        host_least: the windows on the host and the open entry: no recording gets along with less.
        host: with the entry that is being written meanwhile, and a watched step's evidence.
    """

    device: int
    watched: int
    host_least: int
    host: int


@dataclass(frozen=True)
class Needs:
    """What a whole recording needs, in bytes, and what each rank does.

    Attributes:
        opening: the opening balance on disk.
        entry: one entry on disk.
        entries: how many the run leaves, without checkpoints; where its length is not known, a run of
            100,000 steps.
        steps: of such a run.
        planned: whether that is this run's own length.
        ranks: for each rank.
    """

    opening: int
    entry: int
    entries: int
    steps: int
    planned: bool
    ranks: tuple[RankNeeds, ...]

    @property
    def disk_least(self) -> int:
        """The opening balance and one entry: no recording gets along with less."""
        return self.opening + self.entry

    @property
    def disk(self) -> int:
        """What the run leaves on disk, and the room for one more entry that merging takes."""
        return self.opening + self.entry * (self.entries + 1)

    def __str__(self) -> str:
        one = max(self.ranks, key=lambda rank: rank.host)
        device = f"{shown_size(one.device)} of device memory, " if one.device else ""
        watched = f"; in watched steps {shown_size(one.watched)} more" if one.watched else ""
        each = " on a rank" if len(self.ranks) > 1 else ""
        return (
            f"{shown_size(self.disk)} of storage after {self.steps:,} steps"
            f"{'' if self.planned else ', if it takes so many'} ({self.entries:,} entries of "
            f"{shown_size(self.entry)}), {device}{shown_size(one.host)} of host memory{each}{watched}"
        )


def needs_of(
    layout: Layout,
    below: Collection[str],
    *,
    window_steps: int,
    entry_steps: int,
    planned_steps: int | None,
    merge: bool,
    on_cuda: bool,
    on_request: Collection[str] = (),
) -> Needs:
    """Compute what recording `layout` needs.

    Args:
        layout: the parameters, and each rank's share of them.
        below: accumulators of evidence below the step.
        window_steps: steps in a window.
        entry_steps: steps in an entry.
        planned_steps: how many the run is to take; None: not known.
        merge: whether older entries are merged.
        on_cuda: whether gradients are on a GPU.
        on_request: further accumulators of every step or window.
    """
    steps = planned_steps or _USUAL_STEPS
    entries = max(1, entries_left(steps, entry_steps) if merge else -(-steps // entry_steps))
    flags = _ELEMENT * window_steps * len(layout.parameters)
    # A watched step takes its sums over whole parameters, and on every rank.
    wide = sum(info.size for info in layout.parameters)
    moments = {name for name in below if name in INPUT_MOMENTS}
    watched = _ELEMENT * (wide * (len(below) - len(moments)) + sum(layout.size(0, name) for name in moments))
    ranks, written = [], 0
    for rank in range(len(layout.ranks)):
        size = layout.size(rank)
        steady = len(ACCUMULATORS) + len(on_request)
        entry = _ELEMENT * (size * steady + sum(layout.size(rank, name) for name in below))
        written += entry
        window = (_WINDOW + _ELEMENT * ("grad_weight" in on_request)) * size + flags
        # An open entry may need room to work; a byte each tells which had an event before and now.
        least = 2 * window + entry + _ELEMENT * size
        most = least + entry + (_ELEMENT + 2) * size + (0 if on_cuda else watched)
        ranks.append(RankNeeds(window if on_cuda else 0, watched, least, most))
    opening = _ELEMENT * sum(layout.size(rank) for rank in range(len(layout.ranks)))
    return Needs(opening, written, entries, steps, planned_steps is not None, tuple(ranks))


def shown_size(size: int) -> str:
    """Return a number of bytes in the largest unit that leaves it at 1 or more, such as "1.3 GB"."""
    amount, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}"
