"""Cuts many gradients of many sizes into chunks of one size, so that one launch covers them all.

Everything here depends on sizes and offsets alone, which stay the same for a whole run: it is planned and
checked once and kept. What changes from step to step, the addresses of the gradients, is no part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gradtrace.errors import InvalidValueError, MismatchError

__all__ = ["CHUNK", "ChunkTable", "check_ranges", "chunk_table", "joined_positions"]

CHUNK = 4096
"""Elements one program handles."""


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """Where each chunk lies; all tensors on the device of the gradients.

    `members` (M, 3) int64 holds each gradient's size, flat offset and slot; `owner` (C,) int32 the gradient
    a chunk belongs to; `begin` (C,) int64 where in that gradient it begins; `slots` (M,) int64.
    """

    members: Tensor
    owner: Tensor
    begin: Tensor
    slots: Tensor


@lru_cache(maxsize=64)
def check_ranges(
    sizes: tuple[int, ...], slots: tuple[int, ...], offsets: tuple[int, ...], parameters: int, total: int
) -> None:
    """Raise MismatchError unless every gradient has its own slot and its range lies inside the totals.

    `sizes` and `slots` have one entry a gradient, `offsets` one a parameter; `parameters` is the length of
    the flags, `total` that of the totals. A kernel would write outside its buffers where this does not hold.
    """
    if len(offsets) != parameters:
        raise MismatchError("offsets and flags", expected=f"{parameters} offsets", got=str(len(offsets)))
    if len(slots) != len(sizes):
        raise MismatchError("slots and grads", expected=f"{len(sizes)} slots", got=str(len(slots)))
    if len(set(slots)) != len(slots):
        raise InvalidValueError("slots", expected="each slot at most once", got=repr(slots[:8]))
    for size, slot in zip(sizes, slots, strict=True):
        if not 0 <= slot < parameters:
            raise InvalidValueError("slots", expected=f"slots in 0..{parameters - 1}", got=str(slot))
        if not 0 <= offsets[slot] <= total - size:
            raise MismatchError(
                f"the gradient in slot {slot} does not fit the totals",
                expected=f"{size} elements from offset {offsets[slot]} within {total}",
                got=f"an end at {offsets[slot] + size}",
            )


@lru_cache(maxsize=64)
def chunk_table(
    sizes: tuple[int, ...], slots: tuple[int, ...], offsets: tuple[int, ...], device: torch.device
) -> ChunkTable:
    """Plan the chunks of gradients of these sizes; `offsets` has one entry a parameter."""
    # An empty gradient keeps one empty chunk: its flag has to be set all the same.
    counts = torch.tensor([max(1, -(-size // CHUNK)) for size in sizes], dtype=torch.int64)
    owner = torch.arange(len(sizes), dtype=torch.int64).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    begin = (torch.arange(owner.numel(), dtype=torch.int64) - first[owner]) * CHUNK
    members = [(size, offsets[slot], slot) for size, slot in zip(sizes, slots, strict=True)]
    return ChunkTable(
        members=torch.tensor(members, dtype=torch.int64).to(device),
        owner=owner.to(torch.int32).to(device),
        begin=begin.to(device),
        slots=torch.tensor(slots, dtype=torch.int64).to(device),
    )


@lru_cache(maxsize=64)
def joined_positions(
    sizes: tuple[int, ...], slots: tuple[int, ...], offsets: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Where these gradients' elements, joined end to end, lie in the totals, and their lengths; int64."""
    ranges = [
        torch.arange(offsets[slot], offsets[slot] + size) for size, slot in zip(sizes, slots, strict=True)
    ]
    return torch.cat(ranges), torch.tensor(sizes, dtype=torch.int64)
