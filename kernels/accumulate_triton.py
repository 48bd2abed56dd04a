"""`accumulate_` in Triton: one launch for each gradient dtype.

The formula is in `gradtrace.kernels.accumulate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradtrace.kernels.chunk_table import CHUNK, chunk_table
from gradtrace.kernels.optional_triton import jit, tl
from gradtrace.kernels.totals import GRADIENT_DTYPES, Totals, check_arguments

__all__ = ["accumulate_triton_"]

# Elements a GPU program handles at a time, how often, and by how many warps: more a warp and registers spill.
_SIZE = 1024
_PARTS = CHUNK // _SIZE
_WARPS = 8


@jit
def _accumulate_kernel(
    addresses: tl.tensor,  # (M,) int64: where each gradient lies
    members: tl.tensor,
    owner: tl.tensor,
    begin: tl.tensor,
    grad_sum: tl.tensor,
    grad_sumsq: tl.tensor,
    events: tl.tensor,
    votes: tl.tensor,
    flags: tl.tensor,
    scale: tl.tensor,
    skip: tl.tensor,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WEIGHT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    chunk = tl.program_id(0)
    member = tl.load(owner + chunk)
    size = tl.load(members + member * 3)
    offset = tl.load(members + member * 3 + 1)
    slot = tl.load(members + member * 3 + 2)
    grad = tl.load(addresses + member).to(tl.pointer_type(DTYPE))
    # 64 bits throughout: one parameter, or the totals of a large model, can pass 2**31 elements.
    first = tl.load(begin + chunk) + tl.arange(0, SIZE).to(tl.int64)
    if HAS_SKIP:
        skipped = tl.load(skip) != 0
        size = tl.where(skipped, 0, size)  # then no element is inside
    loud = tl.zeros((SIZE,), tl.int32)
    broken = tl.zeros((SIZE,), tl.int32)
    for part in range(PARTS):
        index = first + part * SIZE
        inside = index < size
        wide = tl.load(grad + index, mask=inside, other=0.0).to(WIDE)
        if HAS_SCALE:
            wide = wide * tl.load(scale).to(WIDE)
        narrow = wide.to(tl.float32)
        finite = tl.abs(narrow) <= 3.4028234663852886e38  # false for NaN too
        keep = inside & finite
        event = keep & (tl.abs(wide) > tl.full((SIZE,), THRESHOLD, WIDE))
        at = offset + index
        one = event.to(tl.int16)
        tl.store(events + at, tl.load(events + at, mask=event) + one, mask=event)
        if WEIGHT > 0:
            vote = tl.where(wide > 0, one, -one)
            square = narrow * narrow
            if WEIGHT > 1:
                narrow, square, vote = (
                    narrow * WEIGHT,
                    square * WEIGHT,
                    vote * tl.full((SIZE,), WEIGHT, tl.int16),
                )
            tl.store(grad_sum + at, tl.load(grad_sum + at, mask=keep) + narrow, mask=keep)
            tl.store(grad_sumsq + at, tl.load(grad_sumsq + at, mask=keep) + square, mask=keep)
            tl.store(votes + at, tl.load(votes + at, mask=event) + vote, mask=event)
        loud |= event.to(tl.int32)
        broken |= (inside & (finite == 0)).to(tl.int32)
    bits = 1 + 2 * tl.max(loud, axis=0) + 4 * tl.max(broken, axis=0)
    if HAS_SKIP:
        bits = tl.where(skipped, 8, bits)
    tl.atomic_or(flags + slot, bits, sem="relaxed")


def accumulate_triton_(
    totals: Totals,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    *,
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    weight: int = 1,
) -> None:
    """Do what `accumulate_` does, with Triton: one launch for each gradient dtype."""
    check_arguments(totals, flags, grads, slots, offsets, threshold, scale, skip, weight)
    device = flags.device
    for dtype in GRADIENT_DTYPES:
        chosen = [k for k, grad in enumerate(grads) if grad.dtype == dtype]
        if not chosen:
            continue
        # Copies made here may be freed before the kernel ran: the allocator hands memory on in stream order.
        flat = [grads[k].detach().contiguous() for k in chosen]
        table = chunk_table(
            tuple(grad.numel() for grad in flat), tuple(slots[k] for k in chosen), tuple(offsets), device
        )
        # A fresh pinned tensor each step: the host allocator reuses it only once the copy is done.
        addresses = torch.tensor(
            [grad.data_ptr() for grad in flat], dtype=torch.int64, pin_memory=device.type == "cuda"
        ).to(device, non_blocking=True)
        flags.index_fill_(0, table.slots, 0)
        with torch.cuda.device(device.index if device.type == "cuda" else -1):
            _accumulate_kernel[(table.owner.numel(),)](
                addresses,
                table.members,
                table.owner,
                table.begin,
                *totals,
                flags,
                flags if scale is None else scale,
                flags if skip is None else skip,
                DTYPE=getattr(tl, str(dtype).removeprefix("torch.")),
                WIDE=tl.float64 if dtype == torch.float64 else tl.float32,
                THRESHOLD=float(threshold),
                WEIGHT=weight,
                HAS_SCALE=scale is not None,
                HAS_SKIP=skip is not None,
                PARTS=_PARTS,
                SIZE=_SIZE,
                num_warps=_WARPS,
            )
