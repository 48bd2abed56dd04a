"""`routed_mlp` equals a float64 loop over its blocks, for every way that it runs.

Run plainly this tests the plain-torch form, the compiled one and, with a GPU, the launched kernel;
test_interpreter.py runs the same file under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gradtrace.kernels import routed_mlp as kernel
from gradtrace.kernels.activations import ACTIVATIONS, activate
from gradtrace.kernels.routed_mlp_triton import fits, routed_mlp_triton
from gradtrace.kernels.routing import routing_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@dataclass(frozen=True)
class Way:
    run: Callable[..., Tensor]
    device: str


def interpreted(x: Tensor, *args: Any) -> Tensor:
    """`routed_mlp` with the kernel that a GPU would get."""
    up, up_bias, down, down_bias, ins, hidden, outs, k, m, n, features, activation, gate, gate_bias = args
    above = routing_of(ins, hidden, k, m, x.shape[-1], len(hidden))
    below = routing_of(hidden, outs, m, n, len(hidden), features)
    assert fits(above, below)
    return routed_mlp_triton(x, up, up_bias, down, down_bias, above, below, activation, gate, gate_bias)


WAYS = (
    [pytest.param(Way(interpreted, "cpu"), id="interpreter")]
    if INTERPRETED
    else [
        pytest.param(Way(kernel.routed_mlp, "cpu"), id="cpu"),
        pytest.param(Way(kernel.routed_mlp_reference, "cpu"), id="cpu-reference"),
        pytest.param(Way(kernel.routed_mlp, "cuda"), id="gpu", marks=ON_GPU),
    ]
)
# numpy, which the interpreter computes with, says what a GPU does silently.
pytestmark = [
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.filterwarnings(r"ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]
# (inputs, hidden units, outputs) of each block
SHAPES = {
    "one": [(37, 50, 29)],
    "of one": [(1, 1, 1)] * 5,
    "equal": [(16, 64, 16)] * 4,
    "ragged": [(1, 33, 2), (33, 2, 1), (7, 65, 40), (16, 16, 16), (5, 1, 3)],
}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 2.5e-2, torch.float16: 3e-3}
DTYPES = [torch.float32, torch.bfloat16] if INTERPRETED else list(TOLERANCE)


def arguments(
    shapes: list[tuple[int, int, int]], dtype: torch.dtype, gated: bool, permuted: bool, spare: int = 3
) -> dict[str, Any]:
    """Arguments of `routed_mlp` after x, with inputs and outputs that no block has."""
    k, m, n = ([shape[side] for shape in shapes] for side in range(3))
    torch.manual_seed(0)
    sides = [torch.arange(sum(size)) for size in (k, n)]
    if permuted:
        sides = [torch.randperm(sum(size) + spare)[: sum(size)] for size in (k, n)]

    def weight(rows: list[int], columns: list[int]) -> Tensor:
        parts = [torch.randn(a, b) / b**0.5 for a, b in zip(rows, columns, strict=True)]
        return torch.cat([part.reshape(-1) for part in parts]).to(dtype)

    return {
        "up": weight(m, k), "up_bias": torch.randn(sum(m)).to(dtype), "down": weight(n, m),
        "down_bias": torch.randn(sum(n) + spare).to(dtype),
        "inputs": sides[0], "hidden": torch.arange(sum(m)),
        "outputs": sides[1], "input_sizes": k, "hidden_sizes": m, "output_sizes": n,
        "out_features": sum(n) + spare, "activation": "gelu", "gate": weight(m, k) if gated else None,
        "gate_bias": torch.randn(sum(m)).to(dtype) if gated else None,
    }  # fmt: skip


def oracle(x: Tensor, given: dict[str, Any]) -> Tensor:
    """Block by block in float64."""
    wide = {name: of.double() if isinstance(of, Tensor) else of for name, of in given.items()}
    y = torch.zeros(*x.shape[:-1], given["out_features"], dtype=torch.float64)
    if given["down_bias"] is not None:
        y += wide["down_bias"]
    i = h = o = u = d = 0
    for k, m, n in zip(given["input_sizes"], given["hidden_sizes"], given["output_sizes"], strict=True):
        part = x.double()[..., given["inputs"][i : i + k]]

        def layer(weight: str, bias: str) -> Tensor:
            z = part @ wide[weight][u : u + m * k].view(m, k).t()  # noqa: B023
            return z if given[bias] is None else z + wide[bias][h : h + m]  # noqa: B023

        inside = layer("up", "up_bias")
        if given["gate"] is None:
            inside = activate(inside, given["activation"])
        else:
            inside = activate(layer("gate", "gate_bias"), given["activation"]) * inside
        y[..., given["outputs"][o : o + n]] += inside @ wide["down"][d : d + n * m].view(n, m).t()
        i, h, o, u, d = i + k, h + m, o + n, u + m * k, d + n * m
    return y


def run(way: Way, x: Tensor, given: dict[str, Any]) -> Tensor:
    moved = [of.to(way.device) if isinstance(of, Tensor) else of for of in given.values()]
    result = way.run(x.to(way.device), *moved)
    assert result.is_contiguous()
    assert result.dtype == x.dtype
    return result.cpu()


def check(way: Way, x: Tensor, given: dict[str, Any]) -> None:
    error = (run(way, x, given).double() - oracle(x, given)).abs()
    # Values are of the order of 1 and sums of at most some tens of terms: rounding scales with their roots.
    assert (error <= 4 * TOLERANCE[x.dtype] * (1 + oracle(x, given).abs())).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "permuted"])
@pytest.mark.parametrize("tokens", [0, 1, 5, 40])
@pytest.mark.parametrize("name", SHAPES)
def test_every_structure_equals_the_float64_loop(
    way: Way, name: str, tokens: int, permuted: bool, gated: bool, dtype: torch.dtype
) -> None:
    given = arguments(SHAPES[name], dtype, gated, permuted)
    check(way, torch.randn(tokens, sum(given["input_sizes"]) + 3).to(dtype), given)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tokens", [3, 33])
def test_every_activation(way: Way, tokens: int, activation: str, gated: bool) -> None:
    given = arguments(SHAPES["ragged"], torch.float32, gated, True) | {"activation": activation}
    check(way, torch.randn(tokens, sum(given["input_sizes"]) + 3), given)


@pytest.mark.parametrize("tokens", [1, 20])
def test_biases_may_be_missing_and_x_of_any_strides_and_dimensions(way: Way, tokens: int) -> None:
    none = dict.fromkeys(("up_bias", "down_bias", "gate_bias"))
    given = arguments(SHAPES["equal"], torch.float32, True, False) | none
    check(way, torch.randn(134, tokens).t()[:, ::2], given)
    check(way, torch.randn(2, tokens, 1, 67), given)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [1, 18])
def test_a_bad_input_reaches_its_own_token_and_block_only(way: Way, tokens: int, bad: float) -> None:
    given = arguments(SHAPES["equal"], torch.float32, False, True)
    x = torch.randn(tokens, 67)
    x[-1, given["inputs"][17]] = bad
    hit = torch.zeros(tokens, given["out_features"], dtype=torch.bool)
    hit[-1, given["outputs"][16:32]] = True
    assert torch.equal(~run(way, x, given).isfinite(), hit)


@pytest.mark.parametrize("tokens", [1, 30] if INTERPRETED else [1, 30, 300])
def test_any_number_of_threads_gives_the_same_bits(way: Way, tokens: int) -> None:
    before, given = torch.get_num_threads(), arguments([(32, 128, 32)] * 6, torch.float32, True, True)
    x, results = torch.randn(tokens, 195), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(way, x, given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])


if not INTERPRETED:

    @pytest.mark.parametrize("tokens", [1, 40])
    def test_outputs_in_two_blocks_are_added(way: Way, tokens: int) -> None:
        given = arguments(SHAPES["equal"], torch.float32, False, False)
        check(way, torch.randn(tokens, 67), given | {"outputs": torch.arange(16).repeat(4)})

    @pytest.mark.parametrize("tokens", [1, 40])
    def test_hidden_units_may_lie_in_any_order(way: Way, tokens: int) -> None:
        given = arguments(SHAPES["equal"], torch.float32, False, False)
        order, x = torch.randperm(256), torch.randn(tokens, 67)
        expected = oracle(x, given | {"up_bias": given["up_bias"][order]})
        got = run(way, x, given | {"hidden": order})
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)
