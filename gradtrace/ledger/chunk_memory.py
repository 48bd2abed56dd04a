"""Chunks of totals kept in memory for the parameters that share them, the next ones read ahead."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np

__all__ = ["ChunkMemory"]

Memory: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Fill: TypeAlias = Callable[[Memory], None]


class ChunkMemory:
    """The chunks asked for last, at most `kept` of them and as many ahead; safe to use from several threads.

    The memory of a chunk that goes serves the next one: new memory must first be cleared by the system, which
    takes as long as reading the chunk.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._chunks: dict[Hashable, Memory] = {}
        self._ahead: dict[Hashable, Future[Memory]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def copy(self, key: Hashable, part: slice, out: np.ndarray[Any, Any], *, size: int, fill: Fill) -> None:
        """Copy a part of the chunk `key` to `out`; where it is not kept, `fill` first puts it there.

        Args:
            key: names the chunk, and its dtype, which is that of `out`.
            part: which of its elements.
            out: as many elements.
            size: bytes of the whole chunk.
            fill: called with the place of the whole chunk; where it fails, nothing is kept.
        """
        with self._lock:
            held = self._chunks.pop(key, None)
            if held is None:
                held = self._awaited(key)
            if held is None:
                held = self._room(size)
                fill(held[:size])
            self._chunks[key] = held
            np.copyto(out, held[:size].view(out.dtype)[part])

    def begin(self, key: Hashable, *, size: int, fill: Fill) -> None:
        """Fill the chunk `key`, of `size` bytes, on a thread of its own; `copy` raises what it fails with."""
        with self._lock:
            if key in self._chunks or key in self._ahead or len(self._ahead) >= self._kept:
                return
            self._ahead[key] = filled = Future[Memory]()
            memory = self._room(size)
        threading.Thread(target=_fill, args=(filled, memory, size, fill), daemon=True).start()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._chunks

    def _awaited(self, key: Hashable) -> Memory | None:
        if self._process != os.getpid():
            # A fork takes no threads along: what they were to fill stays empty.
            self._ahead, self._process = {}, os.getpid()
        filled = self._ahead.pop(key, None)
        return None if filled is None else filled.result()

    def _room(self, size: int) -> Memory:
        if len(self._chunks) >= self._kept:
            # In order of last use: a chunk that is used again is put behind the others.
            oldest = self._chunks.pop(next(iter(self._chunks)))
            if oldest.size >= size:
                return oldest
        return np.empty(size, np.uint8)


def _fill(filled: Future[Memory], memory: Memory, size: int, fill: Fill) -> None:
    try:
        fill(memory[:size])
    except BaseException as failure:
        filled.set_exception(failure)
    else:
        filled.set_result(memory)
