"""`routed_linear` in plain torch, on any device: the oracle of the others, and what runs where they cannot.

The formula is in `gradtrace.kernels.routed_linear`.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gradtrace.kernels.activations import activate
from gradtrace.kernels.routing import Routing, Run

__all__ = ["merged", "routed_linear_plain"]

# Multiply-adds of one sub-operator up to which a batched product beats one product each (measured on a CPU).
_BATCHED = 1 << 21


@torch.no_grad()
def routed_linear_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, activation: str, times: Tensor | None
) -> Tensor:
    """Do what `routed_linear` does, without autograd."""
    tokens = prod(x.shape[:-1])
    flat = x.reshape(tokens, x.shape[-1])
    z = x.new_empty((tokens, routing.width + routing.padded))
    if routing.padded:
        z[:, routing.width :].zero_()
    for run in routing.runs:
        _multiply(flat, weight, run, z)
    y = merged(z, bias, routing, x.dtype, activation, times)
    return y.view(*x.shape[:-1], routing.out_features)


def merged(
    z: Tensor,
    bias: Tensor | None,
    routing: Routing,
    dtype: torch.dtype,
    activation: str,
    times: Tensor | None,
) -> Tensor:
    """Make y (T, O) from z: columns in the order of the outputs, those of one added, and what follows."""
    y = z
    if routing.merges:
        y = z.index_select(1, routing.merges[0])
        if routing.overlapping:
            # bfloat16 and float16 would lose at every addition what each product has kept.
            y = y if y.dtype == torch.float64 else y.float()
            for merge in routing.merges[1:]:
                y += z.index_select(1, merge)
    if bias is not None:
        y += bias
    y = activate(y, activation)
    if times is not None:
        y = y * times.reshape(y.shape)
    return y.to(dtype)


def _multiply(x: Tensor, weight: Tensor, run: Run, z: Tensor) -> None:
    """Write the results of one run of equal sub-operators into its columns of z."""
    first, count, tokens = run.blocks[0], len(run.blocks), x.shape[0]
    n, k = first.n, first.k
    weights = weight[first.weight_begin : first.weight_begin + count * n * k].view(count, n, k)
    if count > 1 and tokens * n * k <= _BATCHED:
        gathered = _gather(x, run.inputs).view(tokens, count, k).transpose(0, 1)
        target = z[:, first.column : first.column + count * n].view(tokens, count, n).transpose(0, 1)
        target.copy_(torch.bmm(gathered, weights.transpose(1, 2)))
        return
    for block, matrix in zip(run.blocks, weights.unbind(), strict=True):
        torch.mm(_gather(x, block.inputs), matrix.t(), out=z[:, block.column : block.column + n])


def _gather(x: Tensor, columns: slice | Tensor) -> Tensor:
    return x[:, columns] if isinstance(columns, slice) else x.index_select(1, columns)
