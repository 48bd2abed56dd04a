"""Writing flat arrays as zarr would, with the checksums that a commit keeps.

zarr makes an array's zarr.json. Its chunks are put here: zarr would compute each one's checksum once more,
and copy it twice on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.array_format import ROOT, chunk_elements, raw_chunk
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.encoding import checksum
from gradtrace.ledger.layout import Layout
from gradtrace.ledger.storage import Storage, surfacing

__all__ = ["check_arrays", "check_flat", "write_array", "write_chunks"]


def write_array(storage: Storage, key: str, data: np.ndarray[Any, Any]) -> ArrayDigest:
    """Write `data` (one dimension, C-contiguous) under `key`; it is durable only after a sync.

    Returns:
        The checksums of the array's zarr.json and of each of its chunks.
    """
    length = chunk_elements(data.size)
    parts = (data[first : first + length] for first in range(0, data.size, length))
    return write_chunks(storage, key, data.size, data.dtype.name, parts)


def write_chunks(
    storage: Storage, key: str, size: int, dtype: str, parts: Iterable[np.ndarray[Any, Any]]
) -> ArrayDigest:
    """Write the array of `size` elements of `dtype` whose chunks are `parts`, taken one at a time.

    Returns:
        The checksums of the array's zarr.json and of each of its chunks.
    """
    length = chunk_elements(size)
    digests = []
    with surfacing(f"writing {storage.at(key)}"):
        zarr.create_array(
            storage.zarr_store(key),
            shape=(size,),
            chunks=(length,),
            dtype=dtype,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=0,
        )
    for number, part in enumerate(parts):
        raw = raw_chunk(part, length).view(np.uint8)
        digest = checksum(raw)
        storage.write(f"{key}/c/{number}", raw.data, int(digest, 16).to_bytes(4, "little"))
        digests.append(digest)
    metadata = storage.get(f"{key}/{ROOT}") or b""
    return ArrayDigest(checksum(metadata), tuple(digests))


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
            check_flat(name, arrays[name], dtype, layout.size(rank, name))


def check_flat(what: str, array: object, dtype: str, size: int) -> None:
    """Refuse what is no C-contiguous numpy array of one dimension, this dtype and this size."""
    if not isinstance(array, np.ndarray) or array.dtype.name != dtype or array.shape != (size,):
        got = f"{array.dtype.name} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidValueError(what, expected=f"a numpy array {dtype} ({size},)", got=got)
    if not array.flags.c_contiguous:
        raise InvalidValueError(what, expected="a C-contiguous array", got=f"strides {array.strides}")
