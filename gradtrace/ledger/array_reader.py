"""Reading flat arrays chunk by chunk, each checked against its commit; zarr would give zeros for a loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradtrace.errors import CorruptLedgerError
from gradtrace.ledger.encoding import checksum, decode, reading
from gradtrace.ledger.entry import ArrayDigest
from gradtrace.ledger.storage import Storage

__all__ = ["StoredArray", "chunk_elements"]

CHUNK_ELEMENTS = 4 * 1024 * 1024
_CRC_BYTES = 4


def chunk_elements(size: int) -> int:
    """Return the elements per chunk of an array of `size`: as few chunks as fit the limit, and those even.

    zarr stores the last chunk padded to full length; even chunks keep that padding below one element a chunk.
    """
    return max(1, -(-size // max(1, -(-size // CHUNK_ELEMENTS))))


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
        self._check_metadata()

    def _check_metadata(self) -> None:
        raw = self._storage.get(f"{self._key}/zarr.json")
        if raw is None:
            raise CorruptLedgerError(f"{self._what}: zarr.json is missing")
        if checksum(raw) != self._digest.metadata:
            raise self._differs("zarr.json", self._digest.metadata, checksum(raw))
        with reading(f"{self._what}: zarr.json"):
            metadata = decode(raw)
        expected = {
            "shape": [self._size],
            "data_type": self._dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.chunk_elements]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        }
        for name, value in expected.items():
            got = metadata.get(name) if isinstance(metadata, dict) else None
            if got != value:
                raise CorruptLedgerError(
                    f"{self._what}: {name} in zarr.json", expected=repr(value), got=repr(got)[:80]
                )
        if len(self._digest.chunks) != -(-self._size // self.chunk_elements):
            raise CorruptLedgerError(f"{self._what}: its commit names {len(self._digest.chunks)} chunks")

    def chunk(self, number: int) -> np.ndarray[Any, Any]:
        """Return one chunk, read-only; raises CorruptLedgerError where it is lost, truncated or altered."""
        raw = self._storage.get(f"{self._key}/c/{number}")
        if raw is None:
            raise CorruptLedgerError(f"{self._what}: chunk {number} is missing")
        count = min(self.chunk_elements, self._size - number * self.chunk_elements)
        # The last chunk of a zarr array is stored whole, padded with the fill value.
        stored = self.chunk_elements * self._dtype.itemsize + _CRC_BYTES
        if len(raw) != stored:
            raise CorruptLedgerError(
                f"{self._what}: chunk {number} is truncated", expected=f"{stored} bytes", got=str(len(raw))
            )
        values = np.frombuffer(raw, self._dtype.newbyteorder("<"), count=self.chunk_elements)
        found = checksum(values)
        trailer = f"{int.from_bytes(raw[-_CRC_BYTES:], 'little'):08x}"
        for digest in (self._digest.chunks[number], trailer):
            if found != digest:
                raise self._differs(f"chunk {number}", digest, found)
        return values[:count].astype(self._dtype, copy=False)

    def _differs(self, part: str, expected: str, got: str) -> CorruptLedgerError:
        return CorruptLedgerError(f"{self._what}: {part} is altered", expected=f"crc32c {expected}", got=got)
