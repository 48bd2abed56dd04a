"""What `routed_linear` returns equals a float64 loop over the sub-operators, for every way that it runs.

Run plainly this tests the plain-torch form and, with a GPU, the launched kernel; test_interpreter.py runs the
same file under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtrace.kernels import routed_linear as kernel
from gradtrace.kernels.activations import ACTIVATIONS, activate
from gradtrace.kernels.routed_arguments import checked_routing
from gradtrace.kernels.routed_gradients import gradients
from gradtrace.kernels.routed_gradients_triton import gradients_triton
from gradtrace.kernels.routed_linear_triton import routed_linear_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@dataclass(frozen=True)
class Way:
    run: Callable[..., Tensor]
    device: str


def interpreted(*given: Any) -> Tensor:
    """`routed_linear` with the kernel that a GPU would get."""
    x, weight, bias = given[:3]
    activation, times = given[8:]
    return routed_linear_triton(x, weight, bias, checked_routing(*given), activation, times)


WAYS = (
    [pytest.param(Way(interpreted, "cpu"), id="interpreter")]
    if INTERPRETED
    else [
        pytest.param(Way(kernel.routed_linear, "cpu"), id="cpu"),
        pytest.param(Way(kernel.routed_linear_reference, "cpu"), id="cpu-reference"),
        pytest.param(Way(kernel.routed_linear, "cuda"), id="gpu", marks=ON_GPU),
    ]
)
if torch.cuda.is_available() and not INTERPRETED:
    WAYS.append(pytest.param(Way(kernel.routed_linear_reference, "cuda"), id="gpu-reference", marks=ON_GPU))
# numpy, which the interpreter computes with, says what a GPU does silently.
pytestmark = [
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.filterwarnings(r"ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]


@dataclass(frozen=True)
class Structure:
    in_features: int
    out_features: int
    parts: tuple[tuple[list[int], list[int]], ...]  # (inputs, outputs) of each sub-operator


def some(count: int, of: int, seed: int) -> list[int]:
    return [int(index) for index in np.random.default_rng(seed).permutation(of)[:count]]


def blocks(sizes: list[tuple[int, int]], seed: int | None = None) -> Structure:
    """Disjoint sub-operators (inputs, outputs) that cover everything; permuted where there is a seed."""
    i, o = sum(k for k, _ in sizes), sum(n for _, n in sizes)
    ins = list(range(i)) if seed is None else some(i, i, seed)
    outs = list(range(o)) if seed is None else some(o, o, seed + 1)
    parts, a, b = [], 0, 0
    for k, n in sizes:
        parts.append((ins[a : a + k], outs[b : b + n]))
        a, b = a + k, b + n
    return Structure(i, o, tuple(parts))


STRUCTURES = {
    "one dense": blocks([(37, 29)]),
    "one permuted": blocks([(37, 29)], seed=1),
    "one of one": blocks([(1, 1)]),
    "equal blocks in order": blocks([(5, 7)] * 6),
    "equal blocks permuted": blocks([(5, 7)] * 6, seed=2),
    "ragged blocks permuted": blocks([(1, 1), (33, 2), (2, 65), (16, 16), (16, 16), (7, 1)], seed=3),
    "blocks above the batching limit": blocks([(150, 140), (150, 140)], seed=4),
    "row groups": Structure(
        40, 48, tuple((some(13, 40, s), list(range(16 * s, 16 * s + 16))) for s in range(3))
    ),
    "trimmed": Structure(20, 17, ((list(range(3, 15)), list(range(2, 9))),)),
    "scattered and trimmed": Structure(20, 17, ((some(11, 20, 5), some(6, 17, 6)),)),
    "single indices": Structure(9, 8, (([4], [7]), ([4], [0]), ([8], [3]))),
    "no inputs in one": Structure(6, 5, (([], [1, 0]), ([2, 5], [4, 1]))),
    "no outputs in one": Structure(9, 6, (([0, 1], [5, 4]), ([2, 3], []), ([4, 6], [0, 2]))),
    "nothing in any": Structure(4, 3, (([], []), ([1], []), ([], [2]))),
    "no sub-operators": Structure(4, 3, ()),
    "no outputs at all": Structure(4, 0, (([1, 2], []),)),
    "no inputs at all": Structure(0, 3, (([], [0]),)),
    "outputs in several": Structure(
        30, 20, ((some(9, 30, 7), some(20, 20, 8)), (some(17, 30, 9), [3, 19, 4]))
    ),
    "outputs in all": Structure(12, 5, tuple((some(4, 12, s), [0, 1, 2, 3, 4]) for s in range(5))),
    "several in some and some in none": Structure(12, 9, (([0, 1, 5], [8, 2]), ([1, 0], [2, 3]), ([9], [2]))),
    "an input twice in one": Structure(5, 4, (([3, 3, 1], [0, 1, 2, 3]),)),
}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}
# The interpreter takes long, and float16 goes the way of bfloat16.
DTYPES = [torch.float32, torch.bfloat16] if INTERPRETED else list(TOLERANCE)
FORMS = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def apply(
    way: Way,
    structure: Structure,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "none",
    times: Tensor | None = None,
) -> Tensor:
    ins, outs = ([index for part in structure.parts for index in part[side]] for side in (0, 1))
    result = way.run(
        x.to(way.device),
        weight.to(way.device),
        None if bias is None else bias.to(way.device),
        torch.tensor(ins, dtype=torch.int64, device=way.device),
        torch.tensor(outs, dtype=torch.int64, device=way.device),
        [len(part[0]) for part in structure.parts],
        [len(part[1]) for part in structure.parts],
        structure.out_features,
        activation,
        None if times is None else times.to(way.device),
    )
    assert result.is_contiguous()
    assert result.shape == (*x.shape[:-1], structure.out_features)
    assert result.dtype == x.dtype
    return result.cpu()


def weights(structure: Structure, dtype: torch.dtype = torch.float32) -> Tensor:
    return random(sum(len(ins) * len(outs) for ins, outs in structure.parts), dtype=dtype, seed=11)


def oracle(structure: Structure, x: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    values = x.double().numpy()
    y = np.zeros((*x.shape[:-1], structure.out_features))
    y += 0.0 if bias is None else bias.double().numpy()
    at = 0
    for ins, outs in structure.parts:
        matrix = weight[at : at + len(ins) * len(outs)].double().numpy().reshape(len(outs), len(ins))
        y[..., outs] += values[..., ins] @ matrix.T
        at += matrix.size
    return y


def check(result: Tensor, structure: Structure, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    # An error is measured against the sum of absolute terms: that is what rounding scales with.
    terms = oracle(structure, x.abs(), weight.abs(), None if bias is None else bias.abs())
    error = np.abs(result.double().numpy() - oracle(structure, x, weight, bias))
    assert (error <= TOLERANCE[x.dtype] * terms).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("tokens", [0, 1, 70])
@FORMS
def test_every_structure_equals_the_float64_loop(
    way: Way, structure: Structure, tokens: int, with_bias: bool, dtype: torch.dtype
) -> None:
    x = random(tokens, structure.in_features, dtype=dtype)
    weight = weights(structure, dtype)
    bias = random(structure.out_features, dtype=dtype, seed=5) if with_bias else None
    check(apply(way, structure, x, weight, bias), structure, x, weight, bias)


@pytest.mark.parametrize("tokens", [99, 100, 400])
def test_batched_and_single_products_agree_with_the_loop(way: Way, tokens: int) -> None:
    structure = STRUCTURES["blocks above the batching limit"]
    x, weight, bias = random(tokens, 300), weights(structure), random(280)
    check(apply(way, structure, x, weight, bias), structure, x, weight, bias)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 0, 3), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("name", ["one dense", "ragged blocks permuted", "no inputs at all"])
def test_any_leading_dimensions_are_kept(way: Way, name: str, lead: tuple[int, ...]) -> None:
    structure = STRUCTURES[name]
    x, weight, bias = random(*lead, structure.in_features), weights(structure), random(structure.out_features)
    check(apply(way, structure, x, weight, bias), structure, x, weight, bias)


def columns_apart(rows: int, columns: int) -> Tensor:
    return random(rows, 3 * columns)[:, ::3]


def rows_apart(rows: int, columns: int) -> Tensor:
    return random(2 * rows, columns)[::2]


def transposed(rows: int, columns: int) -> Tensor:
    return random(columns, rows).t()


def one_row_repeated(rows: int, columns: int) -> Tensor:
    return random(1, columns).expand(rows, columns)


def transposed_leading(rows: int, columns: int) -> Tensor:
    return random(rows, 2, columns).transpose(0, 1)


@pytest.mark.parametrize(
    "make", [columns_apart, rows_apart, transposed, one_row_repeated, transposed_leading]
)
@pytest.mark.parametrize("name", ["one dense", "equal blocks in order", "ragged blocks permuted", "trimmed"])
def test_x_need_not_be_contiguous(way: Way, name: str, make: Callable[[int, int], Tensor]) -> None:
    structure = STRUCTURES[name]
    x, weight, bias = make(19, structure.in_features), weights(structure), random(structure.out_features)
    check(apply(way, structure, x, weight, bias), structure, x, weight, bias)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [1, 18])
def test_a_bad_input_reaches_its_own_token_and_outputs_only(way: Way, tokens: int, bad: float) -> None:
    structure = STRUCTURES["equal blocks permuted"]
    x = random(tokens, structure.in_features)
    ins, outs = structure.parts[2]
    x[-1, ins[1]] = bad
    result = apply(way, structure, x, weights(structure), None)
    hit = torch.zeros_like(result, dtype=torch.bool)
    hit[-1, outs] = True
    assert torch.equal(~result.isfinite(), hit)


@pytest.mark.parametrize("name", ["several in some and some in none", "scattered and trimmed"])
def test_a_bad_bias_or_weight_reaches_its_own_output_only(way: Way, name: str) -> None:
    structure = STRUCTURES[name]
    bias, weight = torch.zeros(structure.out_features), weights(structure)
    bias[-1], weight[0] = float("nan"), float("inf")
    result = apply(way, structure, random(5, structure.in_features), weight, bias)
    hit = torch.zeros_like(result, dtype=torch.bool)
    hit[:, [structure.out_features - 1, structure.parts[0][1][0]]] = True
    assert torch.equal(~result.isfinite(), hit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_long_sum_does_not_stall_in_a_short_dtype(way: Way, dtype: torch.dtype) -> None:
    """4,096 ones: added up in bfloat16 itself the sum would stop at 256."""
    structure = Structure(4096, 2, ((list(range(4096)), [1, 0]),))
    ones = torch.ones(2, 4096, dtype=dtype)
    result = apply(way, structure, ones, torch.ones(2 * 4096, dtype=dtype), None)
    assert result.tolist() == [[4096.0, 4096.0], [4096.0, 4096.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_outputs_in_many_sub_operators_are_added_in_float32(way: Way, dtype: torch.dtype) -> None:
    parts = tuple(([s], [0]) for s in range(600))
    structure = Structure(600, 1, parts)
    ones = torch.ones(1, 600, dtype=dtype)
    weight = torch.ones(600, dtype=dtype)
    assert apply(way, structure, ones, weight, None).item() == torch.tensor(600.0, dtype=dtype).item()


@FORMS
def test_the_same_call_gives_the_same_bits(way: Way, structure: Structure) -> None:
    x, weight, bias = random(33, structure.in_features), weights(structure), random(structure.out_features)
    first = apply(way, structure, x, weight, bias)
    assert torch.equal(first, apply(way, structure, x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["ragged blocks permuted", "several in some and some in none"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_activation_and_gate_follow_the_sums(
    way: Way, name: str, tokens: int, activation: str, gated: bool, dtype: torch.dtype
) -> None:
    structure = STRUCTURES[name]
    x, weight = random(tokens, structure.in_features, dtype=dtype), weights(structure, dtype)
    bias = random(structure.out_features, dtype=dtype, seed=5)
    times = random(tokens, structure.out_features, dtype=dtype, seed=6) if gated else None
    result = apply(way, structure, x, weight, bias, activation, times).double()
    z = torch.from_numpy(oracle(structure, x, weight, bias))
    terms = torch.from_numpy(oracle(structure, x.abs(), weight.abs(), bias.abs()))
    gate = 1.0 if times is None else times.double()
    # None is steeper than 1.2, so an error in z grows by that at most; the activation adds its own.
    scale = (1.2 * terms + z.abs()) * (1.0 if times is None else times.double().abs())
    assert ((result - activate(z, activation) * gate).abs() <= 2 * TOLERANCE[dtype] * scale + 1e-12).all()


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("tokens", [1, 17])
def test_an_activation_meets_values_of_any_size(way: Way, activation: str, tokens: int) -> None:
    sizes = [0.0, 1e-30, 1e-3, 0.5, 1, 3, 5, 9, 13, 30, 87, 88, 88.5, 89, 104, 1e3, 1e19, 1e38, float("inf")]
    values = torch.tensor([*sizes, *(-size for size in sizes), float("nan")])
    structure = Structure(1, len(values), (([0], list(range(len(values)))),))
    result = apply(way, structure, torch.ones(tokens, 1), values, None, activation)
    expected = activate(values.double(), activation).float().expand(tokens, -1)
    # Torch itself makes NaN of infinities here and there, as 0 times infinity: that, or the limit.
    certain = ~values.isinf()
    close = torch.isclose(result, expected, rtol=2e-6, atol=0, equal_nan=True)
    tiny = (result - expected).abs() <= 3e-7 * values.abs().clamp(max=100)
    assert (close | tiny)[:, certain].all(), (result[0], expected[0])


@pytest.mark.parametrize("tokens", [33] if INTERPRETED else [1, 33])
def test_thousands_of_sub_operators(way: Way, tokens: int) -> None:
    count = 1000 if INTERPRETED else 4000  # the interpreter takes a minute for thousands
    structure = Structure(count, count, tuple(([s, (7 * s) % count], [s]) for s in range(0, count, 2)))
    x, weight, bias = random(tokens, count), weights(structure), random(count)
    check(apply(way, structure, x, weight, bias), structure, x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 9, 20])
def test_one_long_product_is_cut_in_depth_and_added_again(way: Way, tokens: int, dtype: torch.dtype) -> None:
    parts = ((some(1100, 2000, 1), [4, 0, 2]), (some(37, 2000, 2), [1]))
    structure = Structure(2000, 6, parts)
    x, weight, bias = random(tokens, 2000, dtype=dtype), weights(structure, dtype), random(6, dtype=dtype)
    check(apply(way, structure, x, weight, bias), structure, x, weight, bias)
    first = apply(way, structure, x, weight, bias, "silu")
    assert torch.equal(first, apply(way, structure, x, weight, bias, "silu"))


@pytest.mark.parametrize("tokens", [1, 16, 100])
def test_aligned_blocks_in_order_need_no_index(way: Way, tokens: int) -> None:
    structure = blocks([(64, 40), (24, 80), (8, 16)])
    x, weight, bias = random(tokens, 96), weights(structure), random(136)
    check(apply(way, structure, x, weight, bias), structure, x, weight, bias)


def gradients_by(way: Way) -> Callable[..., Any]:
    """What backward of this way runs."""
    if way.run is interpreted:
        return gradients_triton
    if way.run is kernel.routed_linear_reference:
        return gradients
    return lambda *given: torch.ops.gradtrace.routed_linear_backward(*given, True, True)


@FORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_gradients_of_every_structure_equal_the_float64_ones(
    way: Way, tokens: int, dtype: torch.dtype, structure: Structure
) -> None:
    x, weight = random(tokens, structure.in_features, dtype=dtype), weights(structure, dtype)
    # As backward finds it: a gradient of any strides.
    grad = random(structure.out_features, tokens, dtype=dtype, seed=5).t()
    sides = [[part[side] for part in structure.parts] for side in (0, 1)]
    indices = [torch.tensor([i for one in side for i in one], dtype=torch.int64) for side in sides]
    sizes = [[len(one) for one in side] for side in sides]
    given = [tensor.to(way.device) for tensor in (x, weight, *indices)]
    found = gradients_by(way)(*given, *sizes, grad.to(way.device))
    plain: Any = gradients
    exact = plain(x.double(), weight.double(), *indices, *sizes, grad.double())
    terms = plain(x.double().abs(), weight.double().abs(), *indices, *sizes, grad.double().abs())
    for got, want, of in zip(found, exact, terms, strict=True):
        assert got.dtype == dtype
        # Row groups add in the short dtype only what a dense product would.
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((got.double().cpu() - want).abs() <= 2 * TOLERANCE[dtype] * of + least).all()


@pytest.mark.parametrize("name", ["ragged blocks permuted", "row groups", "outputs in several"])
def test_gradients_have_the_same_bits_every_time(way: Way, name: str) -> None:
    structure = STRUCTURES[name]
    x, weight = random(50, structure.in_features), weights(structure)
    grad = random(50, structure.out_features, seed=5)
    sides = [[part[side] for part in structure.parts] for side in (0, 1)]
    indices = [torch.tensor([i for one in side for i in one], dtype=torch.int64) for side in sides]
    given = [tensor.to(way.device) for tensor in (x, weight, *indices)]
    sizes = [[len(one) for one in side] for side in sides]
    first, again = (gradients_by(way)(*given, *sizes, grad.to(way.device)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
