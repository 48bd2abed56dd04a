"""Layouts on disk: layout.json beside the opening balance, whose checksums it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradtrace.errors import CorruptLedgerError, InvalidValueError
from gradtrace.ledger.array_format import GROUP, ROOT
from gradtrace.ledger.array_writer import write_array
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.encoding import checksum, decode, encode, field, reading
from gradtrace.ledger.header import FORMAT
from gradtrace.ledger.layout import Layout
from gradtrace.ledger.paths import layout_prefix, rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["StoredLayout", "join_layout", "opening_name", "read_layout", "write_layout"]


@dataclass(frozen=True)
class StoredLayout:
    """A layout as it lies on disk: with the checksum of its layout.json and those of its opening balance."""

    layout: Layout
    digest: str
    opening: tuple[ArrayDigest, ...]


def opening_name(rank: int) -> str:
    """Return the name of a rank's opening balance below the layout's prefix."""
    return f"{rank_name(rank)}/opening"


def write_layout(
    storage: Storage, number: int, layout: Layout, opening: Sequence[np.ndarray[Any, Any]]
) -> StoredLayout:
    """Write a layout and its opening balance (per rank float32, flat) and return once both are durable."""
    prefix = layout_prefix(number)
    storage.write(f"{prefix}/{ROOT}", GROUP)
    digests = []
    for rank, weights in enumerate(opening):
        storage.write(f"{prefix}/{rank_name(rank)}/{ROOT}", GROUP)
        digests.append(write_array(storage, f"{prefix}/{opening_name(rank)}", weights))
    stored = _put_layout(storage, number, layout, digests)
    storage.sync(prefix)
    return stored


def join_layout(
    storage: Storage, number: int, layout: Layout, opening: Sequence[ArrayDigest]
) -> StoredLayout:
    """Write a layout whose opening balance each rank has made durable already; durable on return."""
    storage.put(f"{layout_prefix(number)}/{ROOT}", GROUP)
    return _put_layout(storage, number, layout, opening)


def _put_layout(
    storage: Storage, number: int, layout: Layout, opening: Sequence[ArrayDigest]
) -> StoredLayout:
    raw = encode({"format": FORMAT, "opening": [digest.to_json() for digest in opening], **layout.to_json()})
    storage.put(f"{layout_prefix(number)}/layout.json", raw)
    return StoredLayout(layout, checksum(raw), tuple(opening))


def read_layout(storage: Storage, number: int, digest: str) -> StoredLayout:
    """Return layout `number`, whose layout.json must have this checksum; raises CorruptLedgerError."""
    key = f"{layout_prefix(number)}/layout.json"
    raw = storage.get(key)
    if raw is None:
        raise CorruptLedgerError(f"{storage.at(key)} is missing")
    if checksum(raw) != digest:
        raise CorruptLedgerError(
            f"{storage.at(key)} is altered", expected=f"crc32c {digest}", got=checksum(raw)
        )
    with reading(f"{storage.at(key)}"):
        data = decode(raw)
        layout = Layout.from_json(data)
        opening = tuple(ArrayDigest.from_json(one) for one in field(data, "opening", list))
        if len(opening) != len(layout.ranks):
            raise InvalidValueError("opening", expected=f"{len(layout.ranks)} ranks", got=str(len(opening)))
    return StoredLayout(layout, digest, opening)
