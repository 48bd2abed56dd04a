"""How a flat array lies on disk: one plain Zarr v3 array, in even chunks, each with its crc32c behind it."""

from __future__ import annotations

import numpy as np

from gradtrace.ledger.encoding import JSON, encode

__all__ = ["CRC_BYTES", "GROUP", "ROOT", "array_metadata", "chunk_elements"]

ROOT = "zarr.json"
GROUP = encode({"zarr_format": 3, "node_type": "group", "attributes": {}})
CHUNK_ELEMENTS = 4 * 1024 * 1024
CRC_BYTES = 4


def chunk_elements(size: int) -> int:
    """Return the elements per chunk of an array of `size`: as few chunks as fit the limit, and those even.

    Zarr stores the last chunk padded to full length; even chunks keep that padding below one element a chunk.
    """
    return max(1, -(-size // max(1, -(-size // CHUNK_ELEMENTS))))


def array_metadata(size: int, dtype: np.dtype[np.generic]) -> dict[str, JSON]:
    """Return the zarr.json of an array, as zarr itself writes it."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk_elements(size)]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": {},
        "storage_transformers": [],
    }
