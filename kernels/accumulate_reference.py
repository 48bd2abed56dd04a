"""`accumulate_` in plain torch: the oracle of the other two, and what runs where neither of them can.

The formula is in `gradtrace.kernels.accumulate`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gradtrace.kernels.chunk_table import joined_positions
from gradtrace.kernels.totals import EVENT, NONFINITE, SEEN, SKIPPED, Totals, check_arguments

__all__ = ["accumulate_reference_"]

# The least float64 that rounds to infinity in float32.
_OVERFLOWS = 2.0**128 - 2.0**103
# Elements the CPU handles at a time: what the passes below touch then stays in the cache between them.
_BLOCK = 1 << 18
# Gradients up to this size are joined on the CPU: a dozen calls for each would cost more than its elements.
_SMALL = 1 << 12


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
    weight: int = 1,
) -> None:
    """Do what `accumulate_` does, in plain torch on any device."""
    check_arguments(totals, flags, grads, slots, offsets, threshold, scale, skip, weight)
    if not grads:
        return
    with torch.no_grad():
        if flags.device.type != "cpu":
            # `.item()` would make the training thread wait for the device: every case takes the masked form.
            live = None if skip is None else skip == 0
            for grad, slot in zip(grads, slots, strict=True):
                window = _narrow(totals, offsets[slot], grad.numel())
                flags[slot].copy_(
                    _add_masked(window, _scaled(grad.reshape(-1), scale), threshold, live, weight)
                )
            return
        if skip is not None and skip.item() != 0:
            flags[list(slots)] = SKIPPED
            return
        small = [k for k, grad in enumerate(grads) if grad.numel() <= _SMALL and grad.dtype != torch.float64]
        bits = _add_joined(
            totals, [grads[k] for k in small], [slots[k] for k in small], offsets, threshold, scale, weight
        )
        for grad, slot in zip(grads, slots, strict=True):
            if slot in bits:
                continue
            flat, bits[slot] = grad.reshape(-1), SEEN
            for begin in range(0, flat.numel(), _BLOCK):
                block = _scaled(flat[begin : begin + _BLOCK], scale)
                bits[slot] |= _add_block(
                    _narrow(totals, offsets[slot] + begin, block.numel()), block, threshold, weight
                )
        flags[list(bits)] = torch.tensor(list(bits.values()), dtype=torch.int32)


def _narrow(totals: Totals, offset: int, length: int) -> Totals:
    return Totals(*(total.narrow(0, offset, length) for total in totals))


def _scaled(grad: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient in the dtype that decides events: float64 stays float64, all else becomes float32."""
    wide = grad if grad.dtype == torch.float64 else grad.float()
    return wide if scale is None else wide * scale.float()


def _add_block(window: Totals, wide: Tensor, threshold: float, weight: int) -> int:
    """Add one block on the CPU; one pass tells the all-finite, the all-zero and the other case apart."""
    peak = max(abs(bound.item()) for bound in torch.aminmax(wide))  # NaN in a block makes both bounds NaN
    if not peak < _OVERFLOWS:
        return int(_add_masked(window, wide, threshold, None, weight).item())
    if peak == 0.0:
        return SEEN
    if weight:
        narrow = wide.float()
        window.grad_sum.add_(narrow, alpha=weight)
        window.grad_sumsq.addcmul_(narrow, narrow, value=weight)
    if not peak > _rounded(threshold, wide.dtype):
        return SEEN
    loud = torch.hardshrink(wide, threshold) if threshold else wide
    signs = loud.sign().to(torch.int16)
    if weight:
        window.votes.add_(signs, alpha=weight)
    window.events.addcmul_(signs, signs)
    return SEEN | EVENT


def _add_joined(
    totals: Totals,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    threshold: float,
    scale: Tensor | None,
    weight: int,
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
    if weight:
        totals.grad_sum.index_add_(0, positions, wide, alpha=weight)
        totals.grad_sumsq.index_add_(0, positions, wide * wide, alpha=weight)
        totals.votes.index_add_(0, positions, votes, alpha=weight)
    totals.events.index_add_(0, positions, votes.abs())
    any_event = torch.segment_reduce(events, "max", lengths=lengths, initial=0.0).tolist()
    return {slot: SEEN | EVENT * int(event) for slot, event in zip(slots, any_event, strict=True)}


def _add_masked(window: Totals, wide: Tensor, threshold: float, live: Tensor | None, weight: int) -> Tensor:
    """Add one gradient that may hold non-finite elements or be skipped; return its flag as a 0-d tensor."""
    narrow = wide.float()
    finite = narrow.isfinite()
    keep = finite if live is None else finite & live
    event = keep & (wide.abs() > threshold)
    if weight:
        kept = torch.where(keep, narrow, 0.0)
        window.grad_sum.add_(kept, alpha=weight)
        window.grad_sumsq.addcmul_(kept, kept, value=weight)
        window.votes.add_(torch.where(event, wide, 0.0).sign().to(torch.int16), alpha=weight)
    window.events.add_(event)
    bits = SEEN + EVENT * event.any() + NONFINITE * (~finite).any()
    return bits if live is None else torch.where(live, bits, SKIPPED)


def _rounded(threshold: float, dtype: torch.dtype) -> float:
    """The threshold as a comparison with a tensor of this dtype sees it."""
    return threshold if dtype == torch.float64 else ctypes.c_float(threshold).value
