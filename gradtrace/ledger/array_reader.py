"""Reading flat arrays chunk by chunk, each checked against its commit; zarr would give zeros for a loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradtrace.errors import CorruptLedgerError
from gradtrace.ledger.array_format import CRC_BYTES, ROOT, array_metadata, chunk_elements
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.encoding import checksum, decode, reading
from gradtrace.ledger.storage import Storage

__all__ = ["StoredArray"]

# The rest of zarr.json means nothing to a reader: attributes, and a fill value that is never used.
_BINDING = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")


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
        raw = self._storage.get(f"{self._key}/{ROOT}")
        if raw is None:
            raise CorruptLedgerError(f"{self._what}: zarr.json is missing")
        if checksum(raw) != self._digest.metadata:
            raise self._differs("zarr.json", self._digest.metadata, checksum(raw))
        with reading(f"{self._what}: zarr.json"):
            metadata = decode(raw)
        expected = array_metadata(self._size, self._dtype)
        for name in _BINDING:
            got = metadata.get(name) if isinstance(metadata, dict) else None
            if got != expected[name]:
                raise CorruptLedgerError(
                    f"{self._what}: {name} in zarr.json", expected=repr(expected[name]), got=repr(got)[:80]
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
        stored = self.chunk_elements * self._dtype.itemsize + CRC_BYTES
        if len(raw) != stored:
            raise CorruptLedgerError(
                f"{self._what}: chunk {number} is truncated", expected=f"{stored} bytes", got=str(len(raw))
            )
        values = np.frombuffer(raw, self._dtype.newbyteorder("<"), count=self.chunk_elements)
        found = checksum(values)
        trailer = f"{int.from_bytes(raw[-CRC_BYTES:], 'little'):08x}"
        for digest in (self._digest.chunks[number], trailer):
            if found != digest:
                raise self._differs(f"chunk {number}", digest, found)
        return values[:count].astype(self._dtype, copy=False)

    def _differs(self, part: str, expected: str, got: str) -> CorruptLedgerError:
        return CorruptLedgerError(f"{self._what}: {part} is altered", expected=f"crc32c {expected}", got=got)
