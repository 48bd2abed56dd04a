"""One rank's share of what several ranks write: invisible until the holder of the lock commits all shares."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from gradtrace.errors import GradtraceError, InvalidValueError
from gradtrace.ledger.array_format import GROUP, ROOT, chunk_elements
from gradtrace.ledger.array_writer import write_array
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.layout import Layout
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.ledger.paths import entry_prefix, layout_prefix, rank_name

__all__ = ["PartWriter", "check_parts"]


class PartWriter:
    """Writes the arrays of one rank below entries and layouts; takes no lock and commits nothing.

    What it writes is durable when a call returns. `LedgerWriter` commits it, given the checksums of all
    ranks; what nobody commits, the next writer removes.
    """

    def __init__(
        self, path: str | os.PathLike[str], rank: int, storage_options: StorageOptions = None
    ) -> None:
        self._storage, self._rank = storage_at(path, storage_options), rank_name(rank)

    def write_opening(self, layout: int, weights: np.ndarray[Any, Any]) -> ArrayDigest:
        """Write the flat float32 weights with which this layout begins."""
        return self._write(layout_prefix(layout), {"opening": weights})["opening"]

    def write_entry(
        self, begin: int, end: int, generation: int, arrays: Mapping[str, np.ndarray[Any, Any]]
    ) -> dict[str, ArrayDigest]:
        """Write the accumulators of the entry of the steps [begin, end)."""
        return self._write(entry_prefix(begin, end, generation), arrays)

    def _write(self, prefix: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, ArrayDigest]:
        key = f"{prefix}/{self._rank}"
        try:
            # A process of a run that was killed may have written here after the next writer cleaned up.
            self._storage.delete_prefix(key)
            self._storage.write(f"{key}/{ROOT}", GROUP)
            digests = {
                name: write_array(self._storage, f"{key}/{name}", array) for name, array in arrays.items()
            }
            self._storage.sync(key)
        except BaseException:
            with suppress(GradtraceError):
                self._storage.delete_prefix(key)
            raise
        return digests


def check_parts(
    parts: Sequence[Mapping[str, ArrayDigest]], accumulators: Mapping[str, str], layout: Layout
) -> None:
    """Refuse checksums, one mapping a rank, that are not one of each accumulator in the layout's size."""
    if len(parts) != len(layout.ranks):
        raise InvalidValueError("layout", expected=f"one of {len(parts)} ranks", got=str(len(layout.ranks)))
    for rank, part in enumerate(parts):
        if set(part) != set(accumulators):
            raise InvalidValueError(
                f"arrays of rank {rank}",
                expected=", ".join(sorted(accumulators)),
                got=", ".join(sorted(part)),
            )
        for name, digest in part.items():
            size = layout.size(rank, name)
            chunks = -(-size // chunk_elements(size))
            if len(digest.chunks) != chunks:
                raise InvalidValueError(
                    f"{name} of rank {rank}", expected=f"{chunks} chunks", got=str(len(digest.chunks))
                )
