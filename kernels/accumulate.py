"""Adds one step's gradients of all parameters to a window's totals, in one launch for each gradient dtype.

For every parameter in `slots` and every element g of its gradient (times `scale`, where given), in float32:

    grad_sum   += g           events += [ |g| > threshold ]
    grad_sumsq += g * g       votes  += sign(g) * [ |g| > threshold ]

An element that is NaN or infinite adds nothing and is no event. `flags[slot]` tells what this step saw: SEEN,
with EVENT if any element was one and NONFINITE if any was not finite; or SKIPPED alone: then nothing was
added. float64 gradients decide events before they are rounded to float32; what becomes infinite by that
counts as not finite. Counts are 16 bits wide: a window holds at most 32,767 steps. Source: our own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gradtrace.kernels.chunk_table import CHUNK, chunk_table, joined_positions
from gradtrace.kernels.optional_triton import jit, tl, triton
from gradtrace.kernels.totals import (
    EVENT,
    GRADIENT_DTYPES,
    NONFINITE,
    SEEN,
    SKIPPED,
    Totals,
    check_arguments,
)

__all__ = ["EVENT", "NONFINITE", "SEEN", "SKIPPED", "Totals", "accumulate_", "accumulate_reference_"]

# The least float64 that rounds to infinity in float32.
_OVERFLOWS = 2.0**128 - 2.0**103
# Elements the CPU handles at a time: what the passes below touch then stays in the cache between them.
_BLOCK = 1 << 18
# Gradients up to this size are joined on the CPU: a dozen calls for each would cost more than its elements.
_SMALL = 1 << 12
# Elements a GPU program handles at a time, how often, and by how many warps: more a warp and registers spill.
_SIZE = 1024
_PARTS = CHUNK // _SIZE
_WARPS = 8


def accumulate_(
    totals: Totals,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    *,
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """Add one step's gradients to `totals` and write `flags`, in place and without a host sync on a GPU.

    `grads[k]`, of any shape, strides and floating dtype, belongs to parameter `slots[k]`; its elements, in
    row-major order, go to the flat range from `offsets[slots[k]]` on. `flags` is (P,) int32, `offsets` has P
    entries; flags of parameters not in `slots` are left as they are. `threshold` is in units of the
    scaled gradient, `scale` a 0-d float tensor that gradients are multiplied by, `skip` a 0-d tensor: nonzero
    skips the step.

    Raises InvalidValueError, MismatchError or UnsupportedError for arguments that do not fit together.
    """
    # Eager callers skip the dispatcher: passing the lists through it costs over a microsecond a parameter.
    run = torch.ops.gradtrace.accumulate_ if torch.compiler.is_compiling() else _accumulate
    run(*totals, flags, grads, slots, offsets, threshold, scale, skip)


def accumulate_reference_(
    totals: Totals,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    *,
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """Do what `accumulate_` does, in plain torch on any device: the oracle, and what runs without Triton."""
    check_arguments(totals, flags, grads, slots, offsets, threshold, scale, skip)
    if not grads:
        return
    with torch.no_grad():
        if flags.device.type != "cpu":
            # `.item()` would make the training thread wait for the device: every case takes the masked form.
            live = None if skip is None else skip == 0
            for grad, slot in zip(grads, slots, strict=True):
                window = _narrow(totals, offsets[slot], grad.numel())
                flags[slot].copy_(_add_masked(window, _scaled(grad.reshape(-1), scale), threshold, live))
            return
        if skip is not None and skip.item() != 0:
            flags[list(slots)] = SKIPPED
            return
        small = [k for k, grad in enumerate(grads) if grad.numel() <= _SMALL and grad.dtype != torch.float64]
        bits = _add_joined(
            totals, [grads[k] for k in small], [slots[k] for k in small], offsets, threshold, scale
        )
        for grad, slot in zip(grads, slots, strict=True):
            if slot in bits:
                continue
            flat, bits[slot] = grad.reshape(-1), SEEN
            for begin in range(0, flat.numel(), _BLOCK):
                block = _scaled(flat[begin : begin + _BLOCK], scale)
                bits[slot] |= _add_block(
                    _narrow(totals, offsets[slot] + begin, block.numel()), block, threshold
                )
        flags[list(bits)] = torch.tensor(list(bits.values()), dtype=torch.int32)


def _narrow(totals: Totals, offset: int, length: int) -> Totals:
    return Totals(*(total.narrow(0, offset, length) for total in totals))


def _scaled(grad: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient in the dtype that decides events: float64 stays float64, all else becomes float32."""
    wide = grad if grad.dtype == torch.float64 else grad.float()
    return wide if scale is None else wide * scale.float()


def _add_block(window: Totals, wide: Tensor, threshold: float) -> int:
    """Add one block on the CPU; one pass tells the all-finite, the all-zero and the other case apart."""
    peak = max(abs(bound.item()) for bound in torch.aminmax(wide))  # NaN in a block makes both bounds NaN
    if not peak < _OVERFLOWS:
        return int(_add_masked(window, wide, threshold, None).item())
    if peak == 0.0:
        return SEEN
    narrow = wide.float()
    window.grad_sum.add_(narrow)
    window.grad_sumsq.addcmul_(narrow, narrow)
    if not peak > _rounded(threshold, wide.dtype):
        return SEEN
    loud = torch.hardshrink(wide, threshold) if threshold else wide
    signs = loud.sign().to(torch.int16)
    window.votes.add_(signs)
    window.events.addcmul_(signs, signs)
    return SEEN | EVENT


def _add_joined(
    totals: Totals,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    threshold: float,
    scale: Tensor | None,
) -> dict[int, int]:
    """Add many small gradients on the CPU as one; return their flags, or none if nothing was added.

    Only the all-finite case can be joined: otherwise each is added alone.
    """
    if len(grads) < 2:
        return {}
    wide = _scaled(torch.cat([grad.reshape(-1) for grad in grads]), scale)
    if not wide.numel() or not max(abs(bound.item()) for bound in torch.aminmax(wide)) < _OVERFLOWS:
        return {}
    positions, lengths = joined_positions(tuple(grad.numel() for grad in grads), tuple(slots), tuple(offsets))
    signs = torch.hardshrink(wide, threshold).sign()
    votes, events = signs.to(torch.int16), signs.abs()
    totals.grad_sum.index_add_(0, positions, wide)
    totals.grad_sumsq.index_add_(0, positions, wide * wide)
    totals.votes.index_add_(0, positions, votes)
    totals.events.index_add_(0, positions, votes.abs())
    any_event = torch.segment_reduce(events, "max", lengths=lengths, initial=0.0).tolist()
    return {slot: SEEN | EVENT * int(event) for slot, event in zip(slots, any_event, strict=True)}


def _add_masked(window: Totals, wide: Tensor, threshold: float, live: Tensor | None) -> Tensor:
    """Add one gradient that may hold non-finite elements or be skipped; return its flag as a 0-d tensor."""
    narrow = wide.float()
    finite = narrow.isfinite()
    keep = finite if live is None else finite & live
    event = keep & (wide.abs() > threshold)
    kept = torch.where(keep, narrow, 0.0)
    window.grad_sum.add_(kept)
    window.grad_sumsq.addcmul_(kept, kept)
    window.votes.add_(torch.where(event, wide, 0.0).sign().to(torch.int16))
    window.events.add_(event)
    bits = SEEN + EVENT * event.any() + NONFINITE * (~finite).any()
    return bits if live is None else torch.where(live, bits, SKIPPED)


def _rounded(threshold: float, dtype: torch.dtype) -> float:
    """The threshold as a comparison with a tensor of this dtype sees it."""
    return threshold if dtype == torch.float64 else ctypes.c_float(threshold).value


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
        tl.store(grad_sum + at, tl.load(grad_sum + at, mask=keep) + narrow, mask=keep)
        tl.store(grad_sumsq + at, tl.load(grad_sumsq + at, mask=keep) + narrow * narrow, mask=keep)
        one = event.to(tl.int16)
        vote = tl.where(wide > 0, one, -one)
        tl.store(events + at, tl.load(events + at, mask=event) + one, mask=event)
        tl.store(votes + at, tl.load(votes + at, mask=event) + vote, mask=event)
        loud |= event.to(tl.int32)
        broken |= (inside & (finite == 0)).to(tl.int32)
    bits = 1 + 2 * tl.max(loud, axis=0) + 4 * tl.max(broken, axis=0)
    if HAS_SKIP:
        bits = tl.where(skipped, 8, bits)
    tl.atomic_or(flags + slot, bits, sem="relaxed")


def _launch(
    totals: Totals,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    *,
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """Do what `accumulate_` does, with Triton: one launch for each gradient dtype."""
    check_arguments(totals, flags, grads, slots, offsets, threshold, scale, skip)
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
                HAS_SCALE=scale is not None,
                HAS_SKIP=skip is not None,
                PARTS=_PARTS,
                SIZE=_SIZE,
                num_warps=_WARPS,
            )


def _accumulate(
    grad_sum: Tensor,
    grad_sumsq: Tensor,
    events: Tensor,
    votes: Tensor,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    threshold: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    run = _launch if flags.is_cuda and triton is not None else accumulate_reference_
    totals = Totals(grad_sum, grad_sumsq, events, votes)
    run(totals, flags, grads, slots, offsets, threshold=threshold, scale=scale, skip=skip)


_accumulate_op = torch.library.custom_op(
    "gradtrace::accumulate_",
    mutates_args=("grad_sum", "grad_sumsq", "events", "votes", "flags"),
    schema=(
        "(Tensor(a0!) grad_sum, Tensor(a1!) grad_sumsq, Tensor(a2!) events, Tensor(a3!) votes, "
        "Tensor(a4!) flags, Tensor[] grads, "
        "SymInt[] slots, SymInt[] offsets, float threshold=0.0, Tensor? scale=None, "
        "Tensor? skip=None) -> ()"
    ),
)(_accumulate)


@_accumulate_op.register_fake
def _accumulate_fake(*_: object) -> None:
    return None
