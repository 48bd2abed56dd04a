"""The first sampled step's check: contributions must add up to the gradient, or they are no evidence."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch

__all__ = ["first_check"]

# Relative to the gradient's norm: rounding stays far below, a missed use or a wrong formula far above.
# Room is left for TF32 products and for gradients much smaller than the contributions that cancel in them.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 5e-2}


def first_check(
    totals: Mapping[int, torch.Tensor],
    grads: Mapping[int, torch.Tensor],
    lowest: Mapping[int, torch.dtype],
) -> tuple[set[int], dict[int, float]]:
    """Return the parameters whose contributions add up to the gradient, and how far off the others are.

    The difference is relative to the larger norm. Where both are zero, or one is not finite, nothing is
    shown: it is in neither.

    Args:
        totals: Sum_n c_n by parameter, in the scale of the gradient.
        grads: the gradients of the same parameters.
        lowest: the lowest precision that took part in the backward pass of each.

    The host waits for the device once.
    """
    if not totals:
        return set(), {}
    pairs = []
    for number, total in totals.items():
        grad = grads[number].to(total.dtype)
        pairs.append(torch.stack([(total - grad).norm(), torch.maximum(total.norm(), grad.norm())]))
    equal: set[int] = set()
    unequal: dict[int, float] = {}
    for number, (distance, norm) in zip(totals, torch.stack(pairs).tolist(), strict=True):
        if norm == 0.0 or not isfinite(norm):
            continue
        if distance <= _TOLERANCE[lowest[number]] * norm:
            equal.add(number)
        else:
            unequal[number] = distance / norm
    return equal, unequal
