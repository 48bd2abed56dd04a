"""Which dependencies of a parameter ever had an event, gathered from totals that come block by block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Use"]

Bools = NDArray[np.bool_]


class Use:
    """One parameter of at least two dimensions; the dimensions behind the second belong to the second.

    Attributes:
        supported: bool, flat: which dependencies had an event.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.supported = np.zeros(math.prod(shape), np.bool_)

    def add(self, part: slice, events: NDArray[Any]) -> None:
        """Take the events (int) of the elements `part`."""
        np.greater(events, 0, out=self.supported[part])

    @property
    def edges(self) -> Bools:
        """(rows, columns) bool: whether anything between the two was supported."""
        whole = self.supported.reshape(self.shape)
        return whole if whole.ndim == 2 else np.asarray(whole.any(axis=tuple(range(2, whole.ndim))))

    @property
    def never(self) -> int:
        """Dependencies without an event."""
        return self.supported.size - int(np.count_nonzero(self.supported))
