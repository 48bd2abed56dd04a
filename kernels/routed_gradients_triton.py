"""The gradients of `routed_linear` in Triton, in a launch each, whatever the number of sub-operators.

The formulas, for the gradient G (T, O) of the results:

    grad x[:, I_s] += G[:, O_s] W_s        grad W_s = G[:, O_s]^T x[:, I_s]

Where no input lies in two sub-operators (exact blocks), the first is `routed_linear` with inputs and outputs
exchanged and weights read the other way, and the same kernel runs it. Where inputs are shared (row groups),
adding up from many sub-operators moves more than multiplying by zeros costs: the weights are put into one
dense matrix, for one dense product. Nothing is added atomically: the same bits every time.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gradtrace.kernels.optional_triton import jit, tl, triton
from gradtrace.kernels.routed_linear_triton import routed_linear_triton
from gradtrace.kernels.routing import Routing, routing_of

__all__ = ["gradients_triton"]

# Rows and columns of a tile of weights, tokens of a step, warps, stages: none spills (benchmarks/aot.py).
SIDE, TOKENS, WARPS, STAGES = 64, 32, 4, 3


@jit
def _routed_weights_kernel(
    grad: tl.tensor,
    x: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    result: tl.tensor,
    tiles: tl.tensor,
    tokens: tl.int32,
    grad_row: tl.int64,
    grad_column: tl.int64,
    x_row: tl.int64,
    x_column: tl.int64,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    tile = tiles + tl.program_id(0) * 7
    input_begin = tl.load(tile)
    output_begin = tl.load(tile + 1)
    weight_begin = tl.load(tile + 2)
    n = tl.load(tile + 3)
    k = tl.load(tile + 4)
    row = tl.load(tile + 5) + tl.arange(0, SIDE)
    column = tl.load(tile + 6) + tl.arange(0, SIDE)
    # Past the end the last one is read again but never stored.
    target = tl.load(outputs + output_begin + tl.minimum(row, n - 1)).to(tl.int64)
    source = tl.load(inputs + input_begin + tl.minimum(column, k - 1)).to(tl.int64)
    sums = tl.zeros((SIDE, SIDE), tl.float32)
    for at in range(0, tokens, TOKENS):
        token = at + tl.arange(0, TOKENS).to(tl.int64)
        there = token < tokens
        left = tl.load(
            grad + (target * grad_column)[:, None] + (token * grad_row)[None, :],
            mask=there[None, :],
            other=0.0,
        )
        right = tl.load(
            x + (token * x_row)[:, None] + (source * x_column)[None, :], mask=there[:, None], other=0.0
        )
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    kept = (row < n)[:, None] & (column < k)[None, :]
    to = result + weight_begin + row[:, None] * k + column[None, :]
    tl.store(to, sums.to(result.dtype.element_ty), mask=kept)


def gradients_triton(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    grad: Tensor,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Do what `routed_gradients.gradients` does, for float32, bfloat16 and float16, without autograd."""
    sizes = (input_sizes, output_sizes)
    routing = routing_of(inputs, outputs, *sizes, x.shape[-1], grad.shape[-1])
    grad_x = grad_weight = None
    if wanted[0]:
        if routing.shared_inputs:
            grad_x = grad.detach() @ _dense(weight.detach(), routing)
        else:
            back = routing_of(outputs, inputs, output_sizes, input_sizes, grad.shape[-1], x.shape[-1])
            grad_x = routed_linear_triton(grad, weight, None, back, "none", None, turned=True)
    if wanted[1]:
        grad_weight = _weights(x, grad, weight, routing)
    return grad_x, grad_weight


def _dense(weight: Tensor, routing: Routing) -> Tensor:
    """(O, I): all sub-operators added up."""
    places, meeting = routing.places
    flat = weight.new_zeros(routing.out_features * routing.in_features, dtype=torch.float32)
    flat.index_put_((places,), weight.float(), accumulate=meeting)
    return flat.view(routing.out_features, routing.in_features).to(weight.dtype)


def _weights(x: Tensor, grad: Tensor, weight: Tensor, routing: Routing) -> Tensor:
    tokens = prod(x.shape[:-1])
    result = torch.empty_like(weight, memory_format=torch.contiguous_format)
    flat_x, flat_grad = x.detach().reshape(tokens, x.shape[-1]), grad.detach().reshape(tokens, grad.shape[-1])
    if not result.numel():
        return result
    tiles = _tiles(routing, x.device)
    with torch.cuda.device(x.device.index if x.is_cuda else -1):
        _routed_weights_kernel[(tiles.shape[0],)](
            flat_grad,
            flat_x,
            routing.indices[1],
            routing.indices[0],
            result,
            tiles,
            tokens,
            *flat_grad.stride(),
            *flat_x.stride(),
            # Triton's interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584).
            WIDEN=triton.knobs.runtime.interpret and x.dtype == torch.bfloat16,
            PRECISION="tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
            SIDE=SIDE,
            TOKENS=TOKENS,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return result


def _tiles(routing: Routing, device: torch.device) -> Tensor:
    """(tiles, 7) int64, kept with the routing."""
    key = ("weights",)
    if key not in routing.tiles:
        rows = [
            (block.input_begin, block.output_begin, block.weight_begin, block.n, block.k, first, begin)
            for block in routing.blocks
            for first in range(0, block.n, SIDE)
            for begin in range(0, block.k, SIDE)
        ]
        routing.tiles[key] = torch.tensor(rows, dtype=torch.int64).to(device)
    return routing.tiles[key]
