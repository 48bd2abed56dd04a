"""`routed_mlp` on the CPU in float32: what is hidden of a block stays in the cache, tokens side by side.

The formula is in `gradtrace.kernels.routed_mlp`, the products in `routed_linear_cpu.c`: for up to 32 tokens a
block's hidden values lie as its second product reads them, so nothing is turned or gathered in between.
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
from gradtrace.kernels.routed_linear_cpu import FEW, PANEL, TEAM_WORTH
from gradtrace.kernels.routing import Routing

__all__ = ["compiled_mlp", "routed_mlp_cpu", "worth_fusing"]


class _Mlp(ctypes.Structure):
    """`struct mlp` of routed_linear_cpu.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("up", "down", "x", "up_weight", "gate_weight", "down_weight")),
        *((name, ctypes.c_void_p) for name in ("up_bias", "gate_bias", "down_bias", "y", "work")),
        *((name, ctypes.c_int64) for name in ("blocks", "tokens", "x_row", "y_row", "parts", "claimed")),
        ("activation", ctypes.c_int32),
        ("failed", ctypes.c_int32),
    )


@cache
def compiled_mlp() -> ctypes._FuncPointer | None:
    """The compiled function, or None where there is none; from the library of `compiled_products`."""
    library = load(Path(__file__).with_name("routed_linear_cpu.c"), "-ffp-contract=fast")
    if library is None:
        return None
    function = library.gradtrace_routed_mlp
    function.restype = None
    return function


def worth_fusing(x: Tensor, up: Routing) -> bool:
    """Whether there are blocks or panels of tokens for every thread: a block is not shared out."""
    threads = torch.get_num_threads()
    return len(up.blocks) >= threads or prod(x.shape[:-1]) > 2 * threads * PANEL


def routed_mlp_cpu(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    above: Routing,
    below: Routing,
    activation: str,
    gate: Tensor | None,
    gate_bias: Tensor | None,
) -> Tensor:
    """Do what `routed_mlp` does; `above` and `below` are the plans of its two layers, of the same blocks.

    Raises UnsupportedError where `compiled_mlp()` is None, MemoryError where memory ran out.
    """
    function = compiled_mlp()
    if function is None:
        raise UnsupportedError("routed_mlp_cpu", expected="a compiled kernel", got="no C compiler that works")
    if x.stride(-1) != 1 or not (x.dim() == 2 or x.is_contiguous()):
        x = x.contiguous()
    tokens = x.shape[0] if x.dim() == 2 else prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], below.out_features))
    if not y.numel():
        return y
    work = _work(above, below)
    threads = torch.get_num_threads() if int(work[-1]) * max(tokens, FEW) >= TEAM_WORTH else 1
    # Kept, so that they live until the call is over.
    kept = [
        None if tensor is None else tensor.contiguous()
        for tensor in (up, gate, down, up_bias, gate_bias, down_bias)
    ]
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in kept]
    call = _Mlp(
        above.table.address,
        below.table.address,
        x.data_ptr(),
        *addresses,
        y.data_ptr(),
        work.data_ptr(),
        len(above.blocks),
        tokens,
        x.stride(0) if x.dim() == 2 else x.shape[-1],
        below.out_features,
        1 if tokens > 2 * threads * PANEL else threads,
        0,
        ACTIVATIONS.index(activation),
        0,
    )
    run_in_team(function, call, threads)
    if call.failed:
        raise MemoryError(f"routed_mlp found no room for {PANEL} tokens of {x.shape[-1]} inputs")
    return y


def _work(above: Routing, below: Routing) -> Tensor:
    """(S + 1,) int64: multiplications for each token of the blocks before, without a gate's."""
    if id(below) not in above.joined:
        pairs = zip(above.blocks, below.blocks, strict=True)
        work = torch.tensor([0, *(up.n * up.k + down.n * down.k for up, down in pairs)])
        above.joined[id(below)] = (below, work.cumsum(0))
    return above.joined[id(below)][1]
