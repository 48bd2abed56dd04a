"""A linear layer as a list of small dense products: gather the inputs, multiply, scatter the outputs.

For sub-operators s = 1..S with inputs I_s, outputs O_s and weights W_s (n_s, k_s), and for every token x:

    y = bias (or 0);    y[O_s] += W_s x[I_s]    for every s

Sub-operators may share inputs and outputs; an output in none of them is its bias. Source: arXiv 2601.15871,
which runs the independent blocks of a decomposed weight as index-routed operators; the kernels are our own.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from gradtrace.errors import InvalidValueError, MismatchError, UnsupportedError
from gradtrace.kernels.optional_triton import jit, tl, triton
from gradtrace.kernels.routed_linear_cpu import compiled_products, routed_products
from gradtrace.kernels.routing import Routing, Run, routing_of

__all__ = ["routed_linear", "routed_linear_reference"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Multiply-adds of one sub-operator up to which a batched product beats one product each (measured on a CPU).
_BATCHED = 1 << 21
# Inputs a GPU program multiplies at a time.
_DEPTH = 32


def routed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
) -> Tensor:
    """Apply the sub-operators to `x` (..., I); return (..., out_features) of the same dtype, contiguous.

    `weight` (sum n_s * k_s,) holds the blocks W_s one after another, each row-major; `inputs` (sum k_s,) and
    `outputs` (sum n_s,) are int64, cut by the sizes k_s and n_s; `bias` is (out_features,) or None.
    float32, bfloat16, float16 or float64, summed in at least float32 in each product; under autocast as
    `F.linear`. Differentiable in x, weight and bias. On a GPU one Triton launch computes all sub-operators;
    on a CPU with a C compiler one call does, for float32.

    Raises InvalidValueError, MismatchError or UnsupportedError for arguments that do not fit together.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    args = (x, weight, bias, inputs, outputs, input_sizes, output_sizes, out_features)
    if not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            raise UnsupportedError(
                "routed_linear inside a torch.func transform",
                expected="a plain or compiled call",
                remedy="use backward() instead",
            )
        training = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)
        )
        if type(x) is Tensor and not training:
            return _routed_linear(*args)  # without the dispatcher, which costs as much as a small product
    result: Tensor = torch.ops.gradtrace.routed_linear(*args)
    return result


def routed_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
) -> Tensor:
    """Do what `routed_linear` does, in plain torch on any device and without autograd."""
    _check(x, weight, bias, inputs, outputs, out_features)
    routing = routing_of(inputs, outputs, input_sizes, output_sizes, x.shape[-1], out_features)
    _check_weight(weight, routing.weights)
    with torch.no_grad():
        tokens = prod(x.shape[:-1])
        flat = x.reshape(tokens, x.shape[-1])
        z = x.new_empty((tokens, routing.width + routing.padded))
        if routing.padded:
            z[:, routing.width :].zero_()
        for run in routing.runs:
            _multiply(flat, weight, run, z)
        return _merged(z, bias, routing, x.dtype).view(*x.shape[:-1], out_features)


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


def _merged(z: Tensor, bias: Tensor | None, routing: Routing, dtype: torch.dtype) -> Tensor:
    """Make y (T, O) from z: columns in the order of the outputs, those of one output added, and the bias."""
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
    return y.to(dtype)


def _call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
) -> Tensor:
    """Do what `routed_linear` does, by the compiled CPU kernel, for float32."""
    _check(x, weight, bias, inputs, outputs, out_features)
    routing = routing_of(inputs, outputs, input_sizes, output_sizes, x.shape[-1], out_features)
    _check_weight(weight, routing.weights)
    if not routing.overlapping:
        return routed_products(x, weight, bias, routing, out_features)
    # Each result has its own column, added up afterwards: the same bits for any number of threads.
    z = routed_products(x, weight, None, routing, routing.width + routing.padded)
    return _merged(z.flatten(0, -2), bias, routing, x.dtype).view(*x.shape[:-1], out_features)


@jit
def _routed_linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    inputs: tl.tensor,
    columns: tl.tensor,
    z: tl.tensor,
    tiles: tl.tensor,
    tokens: tl.int32,
    x_row: tl.int64,
    x_column: tl.int64,
    z_row: tl.int64,
    HAS_BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    token_tiles = tl.cdiv(tokens, TOKENS)
    tile = tiles + (tl.program_id(0) // token_tiles) * 6
    input_begin = tl.load(tile)
    output_begin = tl.load(tile + 1)
    weight_begin = tl.load(tile + 2)
    n = tl.load(tile + 3)
    k = tl.load(tile + 4)
    row = tl.load(tile + 5) + tl.arange(0, ROWS)
    # 64 bits: tokens times features, and the weights of one layer, can pass 2**31.
    token = (tl.program_id(0) % token_tiles).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    # Past the end the last one is read again but never stored: masks would cost registers in the loop.
    x_rows = x + tl.minimum(token, tokens - 1) * x_row
    matrix_rows = weight + weight_begin + tl.minimum(row, n - 1) * k
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for begin in range(0, k, DEPTH):
        depth = begin + tl.arange(0, DEPTH)
        inside = depth < k
        source = tl.load(inputs + input_begin + depth, mask=inside, other=0) * x_column
        gathered = tl.load(x_rows[:, None] + source[None, :], mask=inside[None, :], other=0.0)
        matrix = tl.load(matrix_rows[None, :] + depth[:, None], mask=inside[:, None], other=0.0)
        if WIDEN:
            gathered, matrix = gathered.to(tl.float32), matrix.to(tl.float32)
        sums = tl.dot(gathered, matrix, sums, input_precision=PRECISION)
    column = tl.load(columns + output_begin + row, mask=row < n, other=0)
    if HAS_BIAS:
        sums += tl.load(bias + column, mask=row < n, other=0.0).to(tl.float32)[None, :]
    at = z + token[:, None] * z_row + column[None, :]
    tl.store(at, sums.to(z.dtype.element_ty), mask=(token < tokens)[:, None] & (row < n)[None, :])


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
) -> Tensor:
    """Do what `routed_linear` does, with Triton, for float32, bfloat16 and float16."""
    _check(x, weight, bias, inputs, outputs, out_features)
    routing = routing_of(inputs, outputs, input_sizes, output_sizes, x.shape[-1], out_features)
    _check_weight(weight, routing.weights)
    tokens = prod(x.shape[:-1])
    flat, weight = x.detach().reshape(tokens, x.shape[-1]), weight.detach().contiguous()
    if routing.overlapping:
        # Each result has its own column, added up afterwards: unlike atomic adds, the same bits every time.
        z = x.new_zeros((tokens, routing.width + 1), dtype=torch.float32)
        columns, epilogue = torch.arange(routing.width, device=x.device), None
    else:
        z = x.new_empty((tokens, out_features))
        if routing.padded:
            z.copy_(torch.zeros((), dtype=x.dtype, device=x.device) if bias is None else bias)
        columns, epilogue = outputs, bias
    if tokens and routing.width:
        side = _tile_side(tokens)
        rows = _tile_side(max(run.blocks[0].n for run in routing.runs))
        tiles = _tiles(routing, rows, x.device)
        with torch.cuda.device(x.device.index if x.is_cuda else -1):
            _routed_linear_kernel[(tiles.shape[0] * triton.cdiv(tokens, side),)](
                flat,
                weight,
                flat if epilogue is None else epilogue,
                inputs,
                columns,
                z,
                tiles,
                tokens,
                *flat.stride(),
                z.stride(0),
                HAS_BIAS=epilogue is not None,
                # Triton's interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584).
                WIDEN=triton.knobs.runtime.interpret and x.dtype == torch.bfloat16,
                PRECISION=_precision(),
                TOKENS=side,
                ROWS=rows,
                DEPTH=_DEPTH,
            )
    y = _merged(z, bias, routing, x.dtype) if routing.overlapping else z
    return y.view(*x.shape[:-1], out_features)


def _tile_side(size: int) -> int:
    """A power of two of at least 16, as `tl.dot` asks, and at most 64: beyond that registers spill."""
    return min(64, max(16, int(triton.next_power_of_2(size))))


def _tiles(routing: Routing, rows: int, device: torch.device) -> Tensor:
    """The kernel's schedule, (tiles, 6) int64, kept with the routing: longest products first."""
    if rows not in routing.tiles:
        blocks = sorted((block for run in routing.runs for block in run.blocks), key=lambda block: -block.k)
        schedule = [
            (
                block.input_begin,
                block.column if routing.overlapping else block.output_begin,
                block.weight_begin,
                block.n,
                block.k,
                begin,
            )
            for block in blocks
            for begin in range(0, block.n, rows)
        ]
        routing.tiles[rows] = torch.tensor(schedule, dtype=torch.int64).to(device)
    return routing.tiles[rows]


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, outputs: Tensor, out_features: int
) -> None:
    dtype, device = x.dtype, x.device
    if (
        dtype in _DTYPES
        and x.dim()
        and (
            bias is None or (bias.shape == (out_features,) and bias.dtype == dtype and bias.device == device)
        )
        and (weight.dtype == dtype and weight.device == device)
        and (inputs.device == device and outputs.device == device and out_features >= 0)
    ):
        return  # at once: one token is computed in little more time than a careful look takes
    if x.dtype not in _DTYPES or x.dim() == 0:
        raise UnsupportedError(
            "x", expected="a floating-point tensor (..., inputs)", got=f"{x.dtype} of shape {tuple(x.shape)}"
        )
    if out_features < 0:
        raise InvalidValueError("out_features", expected="at least 0", got=str(out_features))
    if bias is not None and bias.shape != (out_features,):
        raise MismatchError("bias", expected=f"shape ({out_features},)", got=str(tuple(bias.shape)))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise MismatchError(f"the dtypes of x and {name}", expected=str(x.dtype), got=str(tensor.dtype))
    for name, tensor in (("weight", weight), ("bias", bias), ("inputs", inputs), ("outputs", outputs)):
        if tensor is not None and tensor.device != x.device:
            raise MismatchError(
                f"the devices of x and {name}", expected=str(x.device), got=str(tensor.device)
            )


def _check_weight(weight: Tensor, expected: int) -> None:
    if weight.shape != (expected,):
        raise MismatchError("weight", expected=f"shape ({expected},)", got=str(tuple(weight.shape)))


def _routed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
) -> Tensor:
    run = routed_linear_reference
    if x.is_cuda:
        run = _launch if triton is not None and x.dtype != torch.float64 else run
    elif x.dtype == torch.float32 and x.is_cpu and compiled_products() is not None:
        run = _call
    return run(x, weight, bias, inputs, outputs, input_sizes, output_sizes, out_features)


_routed_linear_op = torch.library.custom_op(
    "gradtrace::routed_linear",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor weight, Tensor? bias, Tensor inputs, Tensor outputs, SymInt[] input_sizes, "
        "SymInt[] output_sizes, SymInt out_features) -> Tensor"
    ),
)(_routed_linear)


@_routed_linear_op.register_fake
def _routed_linear_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[-1]))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, sources, targets, ctx.input_sizes, ctx.output_sizes, _ = inputs
    ctx.save_for_backward(x, weight, sources, targets)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Plain torch that never looks at an index value: it can be traced, compiled and differentiated."""
    x, weight, inputs, outputs = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    flat_x, flat_grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    sizes = list(zip(ctx.output_sizes, ctx.input_sizes, strict=True))
    matrices = [
        part.view(n, k) for part, (n, k) in zip(weight.split([n * k for n, k in sizes]), sizes, strict=True)
    ]
    sources, targets = inputs.split(ctx.input_sizes), outputs.split(ctx.output_sizes)
    grads = [flat_grad.index_select(1, target) for target in targets]
    grad_x = grad_weight = None
    if need_x:
        grad_x = torch.zeros_like(flat_x)
        for part, matrix, source in zip(grads, matrices, sources, strict=True):
            grad_x = grad_x.index_add(1, source, part @ matrix)
        grad_x = grad_x.view(x.shape)
    if need_weight:
        parts = [
            (part.t() @ flat_x.index_select(1, source)).reshape(-1)
            for part, source in zip(grads, sources, strict=True)
        ]
        grad_weight = torch.cat(parts) if parts else torch.zeros_like(weight)
    grad_bias = flat_grad.sum(0) if ctx.has_bias and need_bias else None
    return grad_x, grad_weight, grad_bias, None, None, None, None, None


_routed_linear_op.register_autograd(_backward, setup_context=_keep_for_backward)
