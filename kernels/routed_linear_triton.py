"""`routed_linear` in Triton: one launch for all sub-operators, whatever their sizes.

The formula is in `gradtrace.kernels.routed_linear`. A schedule cuts every sub-operator into tiles of rows,
the longest products first; as many programs as fill the device take turns with them: what is left at the
end is short. Inputs are gathered inside the product; where every sub-operator reads and writes consecutive
features (folded permutations), no index is read at all. For one token a program streams its rows of the
weights against x. Where there are too few tiles to fill the device, long products are cut in depth as well
(split-K): each piece writes sums of its own, which are added afterwards, the same bits every time.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from gradtrace.kernels.activations import activate, activated
from gradtrace.kernels.optional_triton import jit, tl, triton
from gradtrace.kernels.routed_linear_reference import merged
from gradtrace.kernels.routing import Block, Routing
from gradtrace.kernels.tuned_forms import tuned

__all__ = ["FORMS", "Form", "forms_of", "routed_linear_triton", "smaller"]

_WAVES = 4  # programs for each multiprocessor: what is left at the end is a quarter of what it computes
_MOST_PIECES = 8  # of one product's depth


class Form(NamedTuple):
    """How the kernel cuts its work: tokens, rows and inputs of a tile, warps, and loads under way."""

    tokens: int
    rows: int
    depth: int
    warps: int
    stages: int


# By tokens, dtype, and whether weights and results are read and written in whole vectors: what does not
# spill on any GPU it is compiled for (benchmarks/aot.py).
FORMS = {
    ("one", "float32", "whole"): Form(1, 16, 128, 4, 3),
    ("one", "float32", "single"): Form(1, 16, 128, 4, 3),
    ("one", "short", "whole"): Form(1, 8, 256, 4, 3),
    ("one", "short", "single"): Form(1, 16, 128, 4, 3),
    ("few", "float32", "whole"): Form(16, 64, 32, 4, 4),
    ("few", "float32", "single"): Form(16, 32, 32, 4, 3),
    ("few", "short", "whole"): Form(16, 64, 64, 4, 4),
    ("few", "short", "single"): Form(16, 32, 32, 4, 3),
    ("many", "float32", "whole"): Form(64, 64, 32, 8, 3),
    ("many", "float32", "single"): Form(64, 32, 32, 4, 3),
    ("many", "short", "whole"): Form(128, 64, 64, 8, 3),
    ("many", "short", "single"): Form(64, 32, 32, 4, 3),
}


@jit
def _routed_linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    times: tl.tensor,
    inputs: tl.tensor,
    columns: tl.tensor,
    z: tl.tensor,
    tiles: tl.tensor,
    tile_count: tl.int32,
    tokens: tl.int32,
    x_row: tl.int64,
    x_column: tl.int64,
    z_row: tl.int64,
    z_piece: tl.int64,
    HAS_BIAS: tl.constexpr,
    HAS_TIMES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INDEXED: tl.constexpr,
    SCATTERED: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    TURNED: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    token_tiles = tl.cdiv(tokens, TOKENS)
    for item in range(tl.program_id(0), tile_count * token_tiles, tl.num_programs(0)):
        tile = tiles + (item // token_tiles) * 9
        source_begin = tl.load(tile)
        target_begin = tl.load(tile + 1)
        weight_begin = tl.load(tile + 2)
        n = tl.load(tile + 3)
        k = tl.load(tile + 4)
        first = tl.load(tile + 5)
        begin = tl.load(tile + 6)
        end = tl.load(tile + 7)
        piece = tl.load(tile + 8)
        if ALIGNED:  # whole vectors of weights can be read at once
            weight_begin = tl.multiple_of(weight_begin, 8)
            k = tl.multiple_of(k, 8)
            begin = tl.multiple_of(begin, 8)
            end = tl.multiple_of(end, 8)
            if not INDEXED:
                source_begin = tl.multiple_of(source_begin, 8)
        if EVEN:  # and whole vectors of results written
            n = tl.multiple_of(n, 8)
            first = tl.multiple_of(first, 16)
            target_begin = tl.multiple_of(target_begin, 8)
        row = first + tl.arange(0, ROWS)
        # 64 bits: tokens times features, and the weights of one layer, can pass 2**31.
        token = (item % token_tiles) * TOKENS + tl.arange(0, TOKENS).to(tl.int64)
        # Past the end the last one is read again but never stored: masks would cost registers in the loop.
        x_rows = x + tl.minimum(token, tokens - 1) * x_row
        matrix_rows = weight + weight_begin + tl.minimum(row, n - 1) * (1 if TURNED else k)
        step = n if TURNED else 1  # between the weights of one row
        if TOKENS == 1:
            stream = tl.zeros((ROWS, DEPTH), tl.float32)
            for at in range(begin, end, DEPTH):
                depth = at + tl.arange(0, DEPTH)
                inside = depth < end
                source = source_begin + depth
                if INDEXED:
                    source = tl.load(inputs + source, mask=inside, other=0)
                value = tl.load(x + tl.sum(token, axis=0) * x_row + source * x_column, mask=inside, other=0.0)
                matrix = tl.load(
                    matrix_rows[:, None] + (depth * step)[None, :], mask=inside[None, :], other=0.0
                )
                stream += matrix.to(tl.float32) * value.to(tl.float32)[None, :]
            sums = tl.sum(stream, axis=1)[None, :]
        else:
            sums = tl.zeros((TOKENS, ROWS), tl.float32)
            for at in range(begin, end, DEPTH):
                depth = at + tl.arange(0, DEPTH)
                inside = depth < end
                source = source_begin + depth
                if INDEXED:
                    source = tl.load(inputs + source, mask=inside, other=0)
                gathered = tl.load(
                    x_rows[:, None] + (source * x_column)[None, :], mask=inside[None, :], other=0.0
                )
                matrix = tl.load(
                    matrix_rows[None, :] + (depth * step)[:, None], mask=inside[:, None], other=0.0
                )
                if WIDEN:
                    gathered, matrix = gathered.to(tl.float32), matrix.to(tl.float32)
                sums = tl.dot(gathered, matrix, sums, input_precision=PRECISION)
        column = target_begin + row
        if SCATTERED:
            column = tl.load(columns + column, mask=row < n, other=0)
        if HAS_BIAS:
            sums += tl.load(bias + column, mask=row < n, other=0.0).to(tl.float32)[None, :]
        sums = activated(sums, ACTIVATION)
        kept = (token < tokens)[:, None] & (row < n)[None, :]
        if HAS_TIMES:
            gate = tl.load((times + token * z_row)[:, None] + column[None, :], mask=kept, other=0.0)
            sums *= gate.to(tl.float32)
        to = (z + piece * z_piece + token * z_row)[:, None] + column[None, :]
        tl.store(to, sums.to(z.dtype.element_ty), mask=kept)


def routed_linear_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routing: Routing,
    activation: str,
    times: Tensor | None,
    *,
    turned: bool = False,
) -> Tensor:
    """Do what `routed_linear` does, for float32, bfloat16 and float16.

    `turned`: each block of `weight` is stored column by column, as backward finds it.
    """
    tokens = prod(x.shape[:-1])
    flat, weight = x.detach().reshape(tokens, x.shape[-1]), weight.detach().contiguous()
    times = times if times is None else times.reshape(tokens, routing.out_features).contiguous()

    def run(form: Form) -> Tensor:
        return _launched(form, flat, weight, bias, routing, activation, times, turned)

    forms = forms_of(x.dtype, tokens, routing, turned=turned)
    form = tuned(_problem(flat, routing, turned), forms, run, x.device)
    return run(form).view(*x.shape[:-1], routing.out_features)


def _launched(
    form: Form,
    flat: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routing: Routing,
    activation: str,
    times: Tensor | None,
    turned: bool,
) -> Tensor:
    """(T, O) from (T, I)."""
    tokens = flat.shape[0]
    multiprocessors = _multiprocessors(flat.device)
    pieces = _pieces(form, tokens, routing, multiprocessors)
    direct = pieces == 1 and not routing.overlapping
    if direct:
        z = flat.new_empty((tokens, routing.out_features))
        if routing.padded:
            z.copy_(_dead(bias, activation, times, z))
    else:
        # Each result has its own column, added up afterwards: unlike atomic adds, the same bits every time.
        z = flat.new_zeros((pieces, tokens, routing.width + 8 * routing.padded), dtype=torch.float32)
    if tokens and routing.width:
        tiles = _tiles(routing, form, pieces, direct, flat.device)
        epilogue, gate = (bias, times) if direct else (None, None)
        programs = min(tiles.shape[0] * triton.cdiv(tokens, form.tokens), _WAVES * multiprocessors)
        with torch.cuda.device(flat.device.index if flat.is_cuda else -1):
            _routed_linear_kernel[(programs,)](
                flat,
                weight,
                flat if epilogue is None else epilogue,
                flat if gate is None else gate,
                *routing.indices,
                z,
                tiles,
                tiles.shape[0],
                tokens,
                *flat.stride(),
                z.stride(-2),
                0 if direct else z.stride(0),
                HAS_BIAS=epilogue is not None,
                HAS_TIMES=gate is not None,
                ACTIVATION=activation if direct else "none",
                INDEXED=not routing.consecutive_inputs,
                SCATTERED=direct and not routing.consecutive_outputs,
                ALIGNED=routing.aligned,
                EVEN=routing.even,
                TURNED=turned,
                # Triton's interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584).
                WIDEN=triton.knobs.runtime.interpret and flat.dtype == torch.bfloat16,
                PRECISION=_precision(),
                TOKENS=form.tokens,
                ROWS=form.rows,
                DEPTH=form.depth,
                num_warps=form.warps,
                num_stages=form.stages,
            )
    return z if direct else merged(z.sum(0), bias, routing, flat.dtype, activation, times)


def forms_of(dtype: torch.dtype, tokens: int, routing: Routing, *, turned: bool = False) -> list[Form]:
    """Those to choose from for this class of problem, each cut down to what it is to hold."""
    size = "one" if tokens == 1 else "few" if tokens <= 16 else "many"
    loads = "whole" if routing.aligned and routing.even and not turned else "single"
    form = FORMS[size, "float32" if dtype == torch.float32 else "short", loads]
    if size != "one":
        rows = _side(max((block.n for block in routing.blocks), default=1), form.rows)
        form = form._replace(tokens=_side(tokens, form.tokens), rows=rows)
    return [form, *smaller(form)]


def smaller(form: Form) -> list[Form]:
    """Half as many rows, or tokens: more programs, each of which reads the other side as often."""
    found = []
    # Of the largest form half the rows spill on gfx942.
    if form.rows > (8 if form.tokens == 1 else 16) and form.tokens <= 64:
        found.append(form._replace(rows=form.rows // 2))
    if form.tokens > 32:
        found.append(form._replace(tokens=form.tokens // 2))
    return found


def _problem(x: Tensor, routing: Routing, turned: bool) -> str:
    """The class: problems of one are alike enough for one form."""
    longest = max((block.k for block in routing.blocks), default=0)
    reads = ("in order" if routing.consecutive_inputs else "gathered") + (", turned" if turned else "")
    sizes = [number.bit_length() for number in (x.shape[0], routing.width, longest)]
    return f"{x.dtype}, {_precision()}, 2^{sizes}, {reads}, {routing.aligned and routing.even}"


def _side(size: int, most: int) -> int:
    """A power of two of at least 16, as `tl.dot` asks."""
    return min(most, max(16, int(triton.next_power_of_2(size))))


def _pieces(form: Form, tokens: int, routing: Routing, multiprocessors: int) -> int:
    """In how many the longest product's depth is cut: enough to fill the device, none under four steps."""
    tiles = sum(-(-block.n // form.rows) for block in routing.blocks) * -(-tokens // form.tokens)
    longest = max((block.k for block in routing.blocks), default=0)
    if not tiles:
        return 1
    return max(1, min(_MOST_PIECES, multiprocessors // tiles, longest // (4 * form.depth)))


def _tiles(routing: Routing, form: Form, pieces: int, direct: bool, device: torch.device) -> Tensor:
    """The kernel's schedule, (tiles, 9) int64, kept with the routing: longest products first."""
    key = (form.rows, form.depth, pieces)
    if key not in routing.tiles:
        schedule = [
            (
                int(routing.sources[block.input_begin]) if routing.consecutive_inputs else block.input_begin,
                _target(routing, block, direct),
                block.weight_begin,
                block.n,
                block.k,
                first,
                begin,
                min(begin + length, block.k),
                begin // length,
            )
            for block in routing.blocks
            for length in [-(-block.k // (pieces * form.depth)) * form.depth]
            for first in range(0, block.n, form.rows)
            for begin in range(0, block.k, length)
        ]
        schedule.sort(key=lambda tile: tile[6] - tile[7])
        routing.tiles[key] = torch.tensor(schedule, dtype=torch.int64).to(device)
    return routing.tiles[key]


def _target(routing: Routing, block: Block, direct: bool) -> int:
    if not direct:
        return block.column
    return int(routing.targets[block.output_begin]) if routing.consecutive_outputs else block.output_begin


def _dead(bias: Tensor | None, activation: str, times: Tensor | None, z: Tensor) -> Tensor:
    """What an output in no sub-operator is."""
    value = activate(z.new_zeros(()) if bias is None else bias.detach(), activation)
    return value if times is None else value * times


def _multiprocessors(device: torch.device) -> int:
    # In the interpreter few, so that every program takes several turns.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
