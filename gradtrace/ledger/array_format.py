"""How a flat array lies on disk: one plain Zarr v3 array, in even chunks, each with its crc32c behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import decode, encode

__all__ = ["GROUP", "ROOT", "check_metadata", "chunk_elements", "raw_chunk"]

ROOT = "zarr.json"
GROUP = encode({"zarr_format": 3, "node_type": "group", "attributes": {}})
CHUNK_ELEMENTS = 4 * 1024 * 1024


def chunk_elements(size: int) -> int:
    """Return the elements per chunk of an array of `size`: as few chunks as fit the limit, and those even.

    Zarr stores the last chunk padded to full length; even chunks keep that padding below one element a chunk.
    """
    return max(1, -(-size // max(1, -(-size // CHUNK_ELEMENTS))))


def check_metadata(raw: bytes, size: int, dtype: str) -> None:
    """Raise InvalidValueError for a zarr.json that is not that of an array of `size` elements of `dtype`."""
    data = decode(raw)
    said = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk_elements(size)]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    for name, expected in said.items():
        got = data.get(name) if isinstance(data, dict) else data
        if got != expected:
            raise InvalidValueError(f"{name} in zarr.json", expected=repr(expected), got=repr(got)[:80])


def raw_chunk(part: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Return what a chunk's checksum covers: its little-endian elements, with the last one's zero padding."""
    little = part.astype(part.dtype.newbyteorder("<"), copy=False)
    return little if little.size == length else np.pad(little, (0, length - little.size))
