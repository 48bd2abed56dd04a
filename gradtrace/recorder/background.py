"""What the ledger's own threads take from the cores, told per step of the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import thread_time
from typing import Literal, TypeAlias

__all__ = ["Background", "Work"]

Work: TypeAlias = Literal["window", "commit", "merge"]

_KEPT = 64


class Background:
    """Processor seconds of adding windows up, and of committing and merging entries.

    While such work waits for the disk the training goes on: that is not counted.
    """

    def __init__(self) -> None:
        self._seconds: dict[Work, deque[float]] = {
            "window": deque(maxlen=_KEPT),
            "commit": deque(maxlen=_KEPT),
            "merge": deque(maxlen=_KEPT),
        }

    @contextmanager
    def timing(self, work: Work) -> Iterator[None]:
        """Time what the calling thread does within."""
        began = thread_time()
        yield
        self._seconds[work].append(thread_time() - began)

    def seconds_a_step(self, window_steps: int, entry_steps: int) -> float | None:
        """Return the seconds for each step, by the medians so far; None until an entry was committed."""
        windows, commits, merges = map(list, self._seconds.values())
        if not windows or not commits:
            return None
        per_entry = median(commits) + (median(merges) if merges else 0.0)
        return median(windows) / window_steps + per_entry / entry_steps
