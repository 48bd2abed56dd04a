"""`routed_mlp` in Triton, for blocks that fit: what is hidden of a block never leaves the registers.

The formula is in `gradtrace.kernels.routed_mlp`. A program takes some tokens of one block and runs over its
hidden units, a few at a time: their sums, activation and gate, and at once what they add to all outputs of
the block, which is why these have to be few. Inputs are read from the cache again for every few units.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gradtrace.kernels.activations import activated
from gradtrace.kernels.optional_triton import jit, tl, triton
from gradtrace.kernels.routing import Routing

__all__ = ["fits", "routed_mlp_triton"]

TOKENS, HIDDEN, DEPTH, WARPS = 32, 32, 32, 4
_WIDEST, _DEEPEST = 64, 256  # outputs, and inputs, of a block


@jit
def _routed_mlp_kernel(
    x: tl.tensor,
    up: tl.tensor,
    gate: tl.tensor,
    down: tl.tensor,
    up_bias: tl.tensor,
    gate_bias: tl.tensor,
    down_bias: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    y: tl.tensor,
    blocks: tl.tensor,
    tokens: tl.int32,
    x_row: tl.int64,
    x_column: tl.int64,
    y_row: tl.int64,
    HAS_UP_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_GATE_BIAS: tl.constexpr,
    HAS_DOWN_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    token_tiles = tl.cdiv(tokens, TOKENS)
    block = blocks + (tl.program_id(0) // token_tiles) * 8
    input_begin = tl.load(block)
    hidden_begin = tl.load(block + 1)
    output_begin = tl.load(block + 2)
    up_begin = tl.load(block + 3)
    down_begin = tl.load(block + 4)
    k = tl.load(block + 5)
    m = tl.load(block + 6)
    n = tl.load(block + 7)
    token = (tl.program_id(0) % token_tiles) * TOKENS + tl.arange(0, TOKENS).to(tl.int64)
    x_rows = x + tl.minimum(token, tokens - 1) * x_row
    row = tl.arange(0, OUTPUTS)
    down_rows = down + down_begin + tl.minimum(row, n - 1) * m
    result = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for first in range(0, m, HIDDEN):
        unit = first + tl.arange(0, HIDDEN)
        there = unit < m
        rows = up_begin + tl.minimum(unit, m - 1) * k
        sums = tl.zeros((TOKENS, HIDDEN), tl.float32)
        gates = tl.zeros((TOKENS, HIDDEN), tl.float32)
        for at in range(0, k, DEPTH):
            depth = at + tl.arange(0, DEPTH)
            inside = depth < k
            source = tl.load(inputs + input_begin + depth, mask=inside, other=0)
            gathered = tl.load(
                x_rows[:, None] + (source * x_column)[None, :], mask=inside[None, :], other=0.0
            )
            matrix = tl.load(up + rows[None, :] + depth[:, None], mask=inside[:, None], other=0.0)
            if WIDEN:
                gathered, matrix = gathered.to(tl.float32), matrix.to(tl.float32)
            sums = tl.dot(gathered, matrix, sums, input_precision=PRECISION)
            if GATED:
                other = tl.load(gate + rows[None, :] + depth[:, None], mask=inside[:, None], other=0.0)
                if WIDEN:
                    other = other.to(tl.float32)
                gates = tl.dot(gathered, other, gates, input_precision=PRECISION)
        if HAS_UP_BIAS:
            sums += tl.load(up_bias + hidden_begin + unit, mask=there, other=0.0).to(tl.float32)[None, :]
        if GATED:
            if HAS_GATE_BIAS:
                gates += tl.load(gate_bias + hidden_begin + unit, mask=there, other=0.0).to(tl.float32)[
                    None, :
                ]
            sums = activated(gates, ACTIVATION) * sums
        else:
            sums = activated(sums, ACTIVATION)
        # Beyond the last unit the last one stands again: infinite, it would make NaN of zero weights.
        sums = tl.where(there[None, :], sums, 0.0).to(x.dtype.element_ty)
        matrix = tl.load(down_rows[None, :] + unit[:, None], mask=there[:, None], other=0.0)
        if WIDEN:
            sums, matrix = sums.to(tl.float32), matrix.to(tl.float32)
        result = tl.dot(sums, matrix, result, input_precision=PRECISION)
    column = tl.load(outputs + output_begin + row, mask=row < n, other=0)
    if HAS_DOWN_BIAS:
        result += tl.load(down_bias + column, mask=row < n, other=0.0).to(tl.float32)[None, :]
    kept = (token < tokens)[:, None] & (row < n)[None, :]
    tl.store((y + token * y_row)[:, None] + column[None, :], result.to(y.dtype.element_ty), mask=kept)


def fits(above: Routing, below: Routing) -> bool:
    """Whether all blocks are small enough for this kernel."""
    return all(block.n <= _WIDEST for block in below.blocks) and all(
        block.k <= _DEEPEST for block in above.blocks
    )


def routed_mlp_triton(
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
    """Do what `routed_mlp` does, for float32, bfloat16 and float16, where `fits` says so."""
    tokens = prod(x.shape[:-1])
    flat = x.detach().reshape(tokens, x.shape[-1])
    y = x.new_empty((tokens, below.out_features))
    if below.padded:
        y.copy_(y.new_zeros(()) if down_bias is None else down_bias.detach())
    if tokens and above.blocks:
        blocks = _blocks(above, below, x.device)
        given = (up, gate, down, up_bias, gate_bias, down_bias)
        with torch.cuda.device(x.device.index if x.is_cuda else -1):
            _routed_mlp_kernel[(len(above.blocks) * triton.cdiv(tokens, TOKENS),)](
                flat,
                *(flat if tensor is None else tensor.detach().contiguous() for tensor in given),
                above.indices[0],
                below.indices[1],
                y,
                blocks,
                tokens,
                *flat.stride(),
                y.stride(0),
                HAS_UP_BIAS=up_bias is not None,
                GATED=gate is not None,
                HAS_GATE_BIAS=gate_bias is not None,
                HAS_DOWN_BIAS=down_bias is not None,
                ACTIVATION=activation,
                # Triton's interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584).
                WIDEN=triton.knobs.runtime.interpret and x.dtype == torch.bfloat16,
                PRECISION="tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
                TOKENS=TOKENS,
                HIDDEN=HIDDEN,
                OUTPUTS=max(16, int(triton.next_power_of_2(max(block.n for block in below.blocks)))),
                DEPTH=DEPTH,
                num_warps=WARPS,
            )
    return y.view(*x.shape[:-1], below.out_features)


def _blocks(above: Routing, below: Routing, device: torch.device) -> Tensor:
    """(S, 8) int64, kept with the plan: the largest blocks first."""
    if id(below) not in above.joined:
        rows = [
            (
                up.input_begin,
                up.output_begin,
                down.output_begin,
                up.weight_begin,
                down.weight_begin,
                up.k,
                up.n,
                down.n,
            )
            for up, down in zip(above.blocks, below.blocks, strict=True)
        ]
        rows.sort(key=lambda row: -row[6] * (row[5] + row[7]))
        above.joined[id(below)] = (below, torch.tensor(rows, dtype=torch.int64).to(device))
    return above.joined[id(below)][1]
