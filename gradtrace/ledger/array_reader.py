"""Reading flat arrays chunk by chunk, each checked against its commit; zarr would give zeros for a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr

from gradtrace.errors import CorruptLedgerError
from gradtrace.ledger.array_format import ROOT, chunk_elements, raw_chunk
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.encoding import checksum
from gradtrace.ledger.storage import Storage, surfacing

__all__ = ["StoredArray"]


class StoredArray:
    """One flat array on disk.

    Args:
        storage: where it lies.
        key: its key.
        what: how errors name it.
        size: elements it must have.
        dtype: dtype it must have.
        digest: the checksums it must have.
    """

    def __init__(
        self, storage: Storage, key: str, *, what: str, size: int, dtype: str, digest: ArrayDigest
    ) -> None:
        self._storage, self._key, self._what, self._digest = storage, key, what, digest
        self._size, self._dtype = size, np.dtype(dtype)
        self.chunk_elements = chunk_elements(size)
        self._array = self._open()

    def _open(self) -> zarr.Array[Any]:
        raw = self._storage.get(f"{self._key}/{ROOT}")
        if raw is None:
            raise CorruptLedgerError(f"{self._what}: zarr.json is missing")
        if checksum(raw) != self._digest.metadata:
            raise self._differs("zarr.json", self._digest.metadata, checksum(raw))
        with self._reading("zarr.json"):
            array = zarr.open_array(self._storage.zarr_store(self._key, read_only=True), mode="r")
        expected = ((self._size,), self._dtype, (self.chunk_elements,))
        if (array.shape, array.dtype, array.chunks) != expected:
            raise CorruptLedgerError(
                f"{self._what}: shape, dtype and chunks in zarr.json",
                expected=repr(expected),
                got=repr((array.shape, array.dtype, array.chunks))[:80],
            )
        if len(self._digest.chunks) != -(-self._size // self.chunk_elements):
            raise CorruptLedgerError(f"{self._what}: its commit names {len(self._digest.chunks)} chunks")
        return array

    def chunk(self, number: int) -> np.ndarray[Any, Any]:
        """Return one chunk; raises CorruptLedgerError where it is lost, truncated or altered."""
        first = number * self.chunk_elements
        # zarr reads a chunk that is not there as zeros, which would say: never supported.
        if f"{number}" not in self._storage.names(f"{self._key}/c"):
            raise CorruptLedgerError(f"{self._what}: chunk {number} is missing")
        with self._reading(f"chunk {number}"):
            values = np.asarray(self._array[first : first + self.chunk_elements])
        found = checksum(raw_chunk(values, self.chunk_elements))
        if found != self._digest.chunks[number]:
            raise self._differs(f"chunk {number}", self._digest.chunks[number], found)
        return values

    @contextmanager
    def _reading(self, part: str) -> Iterator[None]:
        with surfacing(f"reading {self._what}"):
            try:
                yield
            except OSError:
                raise
            except Exception as error:
                # zarr and its codecs raise what they like for bytes that they cannot make sense of.
                raise CorruptLedgerError(
                    f"{self._what}: {part} is truncated or altered", got=str(error)[:200]
                ) from error

    def _differs(self, part: str, expected: str, got: str) -> CorruptLedgerError:
        return CorruptLedgerError(f"{self._what}: {part} is altered", expected=f"crc32c {expected}", got=got)
