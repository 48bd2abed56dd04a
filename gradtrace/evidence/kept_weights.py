"""Weights in a file, the last one asked for kept: several criteria look at the same parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

from gradtrace.evidence.stored_weights import StoredWeight, StoredWeights

__all__ = ["KeptWeights"]

Array: TypeAlias = NDArray[Any]


class KeptWeights(StoredWeights):
    """Name -> weight, read and checked once while no other is asked for. Not to be written to."""

    def __init__(self, places: Mapping[str, StoredWeight]) -> None:
        super().__init__(places)
        self._last: tuple[str, Array] | None = None

    def __getitem__(self, name: str) -> Array:
        if self._last is None or self._last[0] != name:
            self._last = None  # gone before the next one comes
            self._last = (name, super().__getitem__(name))
        return self._last[1]
