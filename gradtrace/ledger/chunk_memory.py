"""Chunks of totals kept in memory for the parameters that share them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

__all__ = ["ChunkMemory"]


class ChunkMemory:
    """The chunks asked for last, at most `kept` of them; safe to use from several threads.

    The memory of a chunk that goes serves the next one: new memory must first be cleared by the system, which
    takes as long as reading the chunk.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._chunks: dict[Hashable, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self._lock = threading.Lock()

    def copy(
        self,
        key: Hashable,
        part: slice,
        out: np.ndarray[Any, Any],
        *,
        size: int,
        fill: Callable[[np.ndarray[Any, Any]], None],
    ) -> None:
        """Copy a part of the chunk `key` to `out`; where it is not kept, `fill` first puts it there.

        Args:
            key: names the chunk, and its dtype, which is that of `out`.
            part: which of its elements.
            out: as many elements.
            size: elements of the whole chunk.
            fill: called with the place of the whole chunk; where it fails, nothing is kept.
        """
        with self._lock:
            held = self._chunks.pop(key, None)
            if held is None:
                held = self._room(size * out.itemsize)
                fill(held[: size * out.itemsize].view(out.dtype))
            self._chunks[key] = held
            np.copyto(out, held[: size * out.itemsize].view(out.dtype)[part])

    def __contains__(self, key: Hashable) -> bool:
        return key in self._chunks

    def _room(self, bytes_needed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if len(self._chunks) >= self._kept:
            # In order of last use: a chunk that is used again is put behind the others.
            oldest = self._chunks.pop(next(iter(self._chunks)))
            if oldest.size >= bytes_needed:
                return oldest
        return np.empty(bytes_needed, np.uint8)
