"""Reading flat arrays a block at a time, each chunk checked against its commit.

Not through zarr: it gives zeros for a lost chunk, and checks and copies what is checked here.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, BinaryIO

import numpy as np

from gradtrace.errors import CorruptLedgerError, InvalidValueError
from gradtrace.ledger.array_format import ROOT, check_metadata, chunk_elements
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.encoding import checksum, extended
from gradtrace.ledger.storage import Storage, surfacing

__all__ = ["BLOCK", "StoredArray"]

# Bytes read at a time: a block and the part of the sum that it is added to stay in a core's cache.
BLOCK = 2**20


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
        self._size, self._dtype = size, np.dtype(dtype).newbyteorder("<")
        self._chunk_elements = chunk_elements(size)
        raw = self._storage.get(f"{self._key}/{ROOT}")
        if raw is None:
            raise CorruptLedgerError(f"{self._what}: zarr.json is missing")
        if checksum(raw) != self._digest.metadata:
            raise self._differs("zarr.json", self._digest.metadata, checksum(raw))
        try:
            check_metadata(raw, size, dtype)
        except InvalidValueError as error:
            raise CorruptLedgerError(f"{self._what}: {error.message}") from error
        if len(self._digest.chunks) != -(-self._size // self._chunk_elements):
            raise CorruptLedgerError(f"{self._what}: its commit names {len(self._digest.chunks)} chunks")

    def blocks(self, number: int) -> Generator[np.ndarray[Any, Any]]:
        """Yield the elements of one chunk in order, BLOCK bytes at a time; each block overwrites the last.

        What was yielded may be relied on only once the iterator has come to its end.

        Raises:
            CorruptLedgerError: the chunk is lost, truncated or altered.
            StorageError: the disk refuses to read it.
        """
        part = f"chunk {number}"
        with surfacing(f"reading {self._what}"):
            file = self._storage.open(f"{self._key}/c/{number}")
            if file is None:
                raise CorruptLedgerError(f"{self._what}: {part} is missing")
            with file:
                found, buffer = 0, np.empty(BLOCK, np.uint8)
                left = self._chunk_elements * self._dtype.itemsize
                filled = min(self._size - number * self._chunk_elements, self._chunk_elements)
                while left:
                    raw = buffer[: min(left, BLOCK)]
                    self._fill(file, raw.data, part)
                    found = extended(found, raw)
                    left -= raw.size
                    elements = raw.view(self._dtype)[:filled]
                    filled -= elements.size
                    yield elements
                behind = file.read(5)
        if f"{found:08x}" != self._digest.chunks[number]:
            raise self._differs(part, self._digest.chunks[number], f"{found:08x}")
        # What stands behind is zarr's own checksum of the same bytes.
        if behind != found.to_bytes(4, "little"):
            raise CorruptLedgerError(f"{self._what}: {part} is truncated or altered behind its elements")

    def _fill(self, file: BinaryIO, raw: memoryview, part: str) -> None:
        while raw:
            count = file.readinto(raw)  # type: ignore[attr-defined]
            if not count:
                raise CorruptLedgerError(f"{self._what}: {part} is truncated")
            raw = raw[count:]

    def _differs(self, part: str, expected: str, got: str) -> CorruptLedgerError:
        return CorruptLedgerError(f"{self._what}: {part} is altered", expected=f"crc32c {expected}", got=got)
