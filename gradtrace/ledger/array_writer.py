"""Writing flat arrays, with the checksums that a commit keeps.

The bytes are plain enough to write directly: zarr's own writer needs three times as long for a small entry,
and after a failure its threads go on writing where the next attempt is already at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.array_format import CRC_BYTES, ROOT, array_metadata, chunk_elements
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.encoding import checksum, encode
from gradtrace.ledger.layout import Layout
from gradtrace.ledger.storage import Storage

__all__ = ["check_arrays", "check_flat", "write_array"]


def write_array(storage: Storage, key: str, data: np.ndarray[Any, Any]) -> ArrayDigest:
    """Write `data` (one dimension, C-contiguous) under `key`; it is durable only after a sync.

    Returns:
        The checksums of the array's zarr.json and of each of its chunks.
    """
    little = data.astype(data.dtype.newbyteorder("<"), copy=False)
    metadata = encode(array_metadata(data.size, data.dtype))
    storage.write(f"{key}/{ROOT}", metadata)
    length = chunk_elements(data.size)
    digests = []
    for number, first in enumerate(range(0, data.size, length)):
        chunk = _padded(little[first : first + length], length)
        digest = checksum(chunk)
        storage.write(f"{key}/c/{number}", chunk.data, int(digest, 16).to_bytes(CRC_BYTES, "little"))
        digests.append(digest)
    return ArrayDigest(checksum(metadata), tuple(digests))


def _padded(part: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    # zarr stores the last chunk at full length, so its checksum covers the padding too.
    return part if part.size == length else np.pad(part, (0, length - part.size))


def check_arrays(
    ranks: Sequence[Mapping[str, np.ndarray[Any, Any]]], accumulators: Mapping[str, str], layout: Layout
) -> None:
    """Refuse arrays, one mapping a rank, that are not one of each accumulator in the layout's size."""
    if len(ranks) != len(layout.ranks):
        raise InvalidValueError("layout", expected=f"one of {len(ranks)} ranks", got=str(len(layout.ranks)))
    for rank, arrays in enumerate(ranks):
        if set(arrays) != set(accumulators):
            raise InvalidValueError(
                "arrays", expected=", ".join(sorted(accumulators)), got=", ".join(sorted(map(str, arrays)))
            )
        for name, dtype in accumulators.items():
            check_flat(name, arrays[name], dtype, layout.size(rank))


def check_flat(what: str, array: object, dtype: str, size: int) -> None:
    """Refuse what is no C-contiguous numpy array of one dimension, this dtype and this size."""
    if not isinstance(array, np.ndarray) or array.dtype.name != dtype or array.shape != (size,):
        got = f"{array.dtype.name} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidValueError(what, expected=f"a numpy array {dtype} ({size},)", got=got)
    if not array.flags.c_contiguous:
        raise InvalidValueError(what, expected="a C-contiguous array", got=f"strides {array.strides}")
