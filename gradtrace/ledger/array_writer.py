"""Writing flat arrays as zarr arrays, with the checksums that a commit keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from gradtrace.errors import StorageError
from gradtrace.ledger.array_reader import chunk_elements
from gradtrace.ledger.encoding import checksum
from gradtrace.ledger.entry import ArrayDigest
from gradtrace.ledger.storage import Storage, surfacing

__all__ = ["write_array"]


def write_array(storage: Storage, prefix: str, name: str, data: np.ndarray[Any, Any]) -> ArrayDigest:
    """Write `data` (one dimension, C-contiguous) at `prefix`/`name`; it is durable only after a sync.

    Returns:
        The checksums of the array's zarr.json and of each of its chunks.
    """
    little = data.astype(data.dtype.newbyteorder("<"), copy=False)
    chunk = chunk_elements(little.size)
    with surfacing(f"writing {storage.path / prefix / name}"):
        array = zarr.create_array(
            storage.zarr_store(prefix),
            name=name,
            shape=little.shape,
            chunks=(chunk,),
            dtype=little.dtype,
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=0,
            # An all-zero chunk that zarr left out could not be told from a lost one.
            config={"write_empty_chunks": True},
        )
        array[:] = little
    metadata = storage.get(f"{prefix}/{name}/zarr.json")
    if metadata is None:
        raise StorageError(f"{storage.path / prefix / name} vanished while it was written")
    chunks = (little[first : first + chunk] for first in range(0, little.size, chunk))
    return ArrayDigest(checksum(metadata), tuple(checksum(_padded(part, chunk)) for part in chunks))


def _padded(part: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    # zarr stores the last chunk at full length, so its checksum covers the padding too.
    return part if part.size == length else np.pad(part, (0, length - part.size))
