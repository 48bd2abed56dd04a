"""What the accumulate kernel writes, a window's totals and one flag a parameter, and the checks before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradtrace.errors import InvalidValueError, MismatchError, UnsupportedError
from gradtrace.kernels.chunk_table import check_ranges

__all__ = [
    "EVENT",
    "GRADIENT_DTYPES",
    "MOST_STEPS",
    "NONFINITE",
    "SEEN",
    "SKIPPED",
    "Totals",
    "check_arguments",
]

MOST_STEPS = 2**15 - 1
"""Longest window, in steps times their weight: counts have 16 bits."""

SEEN, EVENT, NONFINITE, SKIPPED = 1, 2, 4, 8

GRADIENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Totals(NamedTuple):
    """The sums of one window, flat, all of one length and on one device."""

    grad_sum: Tensor
    """(N,) float32."""
    grad_sumsq: Tensor
    """(N,) float32."""
    events: Tensor
    """(N,) int16."""
    votes: Tensor
    """(N,) int16."""


def check_arguments(
    totals: Totals,
    flags: Tensor,
    grads: Sequence[Tensor],
    slots: Sequence[int],
    offsets: Sequence[int],
    threshold: float,
    scale: Tensor | None,
    skip: Tensor | None,
    weight: int = 1,
) -> None:
    """Raise InvalidValueError, MismatchError or UnsupportedError unless a kernel can safely run on these."""
    if not (math.isfinite(threshold) and threshold >= 0):
        raise InvalidValueError("threshold", expected="a finite number of at least 0", got=repr(threshold))
    if not 0 <= weight <= MOST_STEPS:
        raise InvalidValueError("weight", expected=f"a whole number, 0 to {MOST_STEPS}", got=repr(weight))
    total, device = totals.grad_sum.numel(), flags.device
    wanted = (torch.float32, torch.float32, torch.int16, torch.int16)
    for name, tensor, dtype in zip(
        (*Totals._fields, "flags"), (*totals, flags), (*wanted, torch.int32), strict=True
    ):
        length = flags.numel() if name == "flags" else total
        if tensor.dtype != dtype or tensor.shape != (length,) or not tensor.is_contiguous():
            raise MismatchError(name, expected=f"a flat {dtype} tensor ({length},)", got=_described(tensor))
    for name, scalar in (("scale", scale), ("skip", skip)):
        if scalar is not None and scalar.numel() != 1:
            raise InvalidValueError(name, expected="a 0-d tensor or None", got=_described(scalar))
    for grad in grads:
        if grad.dtype not in GRADIENT_DTYPES or grad.layout != torch.strided:
            raise UnsupportedError("gradient", expected="a dense floating-point tensor", got=_described(grad))
    given = [*totals, *grads] + [scalar for scalar in (scale, skip) if scalar is not None]
    strays = [tensor for tensor in given if tensor.device != device]
    if strays:
        raise MismatchError("devices", expected=f"everything on {device}", got=_described(strays[0]))
    check_ranges(tuple(grad.numel() for grad in grads), tuple(slots), tuple(offsets), flags.numel(), total)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
