"""`routed_linear` on the CPU in float32: one compiled call for all sub-operators, on torch's own threads.

The formula is in `gradtrace.kernels.routed_linear`, the products in `routed_linear_cpu.c`. No matrix of
gathered inputs is made and no result is copied: each weight is read once for up to 32 tokens. Outputs that
several sub-operators share are added afterwards, in a fixed order.
"""

from __future__ import annotations

import ctypes
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from gradtrace.errors import UnsupportedError
from gradtrace.kernels.activations import ACTIVATIONS
from gradtrace.kernels.compiled import load
from gradtrace.kernels.openmp import run_in_team
from gradtrace.kernels.routed_linear_reference import merged
from gradtrace.kernels.routing import Routing

__all__ = ["FEW", "PANEL", "TEAM_WORTH", "compiled_products", "routed_linear_cpu"]

# PANEL (at most) and FEW of the C file: tokens for which weights are read once, and up to which as they lie.
PANEL, FEW = 32, 8
# Multiplications from which a team of threads gains more than it costs, some 20 microseconds of one thread.
# Reading the weights for one token takes as long as multiplying them with eight.
TEAM_WORTH = 1 << 19


class _Call(ctypes.Structure):
    """`struct call` of routed_linear_cpu.c."""

    _fields_ = (
        ("layer", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("times", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("tokens", ctypes.c_int64),
        ("x_row", ctypes.c_int64),
        ("y_row", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("claimed", ctypes.c_int64),
        ("activation", ctypes.c_int32),
        ("failed", ctypes.c_int32),
    )


@cache
def compiled_products() -> ctypes._FuncPointer | None:
    """The compiled function, or None where there is none; the first call compiles, in one or two seconds."""
    # Contracted: a product and a sum in one instruction, which is half of what a processor can do.
    library = load(Path(__file__).with_name("routed_linear_cpu.c"), "-ffp-contract=fast")
    if library is None:
        return None
    function = library.gradtrace_routed_linear
    function.restype = None
    return function


def routed_linear_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, activation: str, times: Tensor | None
) -> Tensor:
    """Do what `routed_linear` does, by the compiled kernel; all tensors are float32 on the CPU.

    Raises UnsupportedError where `compiled_products()` is None, MemoryError where memory ran out.
    """
    if not routing.overlapping:
        return _products(x, weight, bias, routing, routing.out_features, activation, times)
    # Each result has its own column, added up afterwards: the same bits for any number of threads.
    z = _products(x, weight, None, routing, routing.width + routing.padded, "none", None)
    y = merged(z.flatten(0, -2), bias, routing, x.dtype, activation, times)
    return y.view(*x.shape[:-1], routing.out_features)


def _products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routing: Routing,
    width: int,
    activation: str,
    times: Tensor | None,
) -> Tensor:
    """(..., width), the products in the columns of `routing.table`, with bias, activation and gate."""
    table, function = routing.table, compiled_products()
    if function is None:
        raise UnsupportedError(
            "routed_linear_cpu", expected="a compiled kernel", got="no C compiler that works"
        )
    if x.stride(-1) != 1 or not (x.dim() == 2 or x.is_contiguous()):
        x = x.contiguous()
    tokens = x.shape[0] if x.dim() == 2 else prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], width))
    if not y.numel():
        return y
    # Named, so that they live until the call is over.
    weight = weight.contiguous()
    bias = bias if bias is None else bias.contiguous()
    times = times if times is None else times.contiguous()
    threads = torch.get_num_threads() if table.work * max(tokens, FEW) >= TEAM_WORTH else 1
    call = _Call(
        table.address,
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if times is None else times.data_ptr(),
        y.data_ptr(),
        tokens,
        x.stride(0) if x.dim() == 2 else x.shape[-1],
        width,
        # Whole panels spread over the threads where there are many: a part of one turns x for itself.
        1 if tokens > 2 * threads * PANEL else threads,
        0,
        ACTIVATIONS.index(activation),
        0,
    )
    run_in_team(function, call, threads)
    if call.failed:
        raise MemoryError(f"routed_linear found no room for {PANEL} tokens of {x.shape[-1]} inputs")
    return y
