"""The compiled CPU products equal a float64 loop, for every number of tokens, threads and instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradtrace.kernels import routed_linear as kernel
from gradtrace.kernels import routed_linear_cpu
from gradtrace.kernels.compiled import load
from gradtrace.kernels.routed_linear_cpu import compiled_products
from gradtrace.kernels.routing import routing_of

pytestmark = pytest.mark.skipif(compiled_products() is None, reason="needs a C compiler")
Parts = list[tuple[list[int], list[int]]]
SOURCE = Path(routed_linear_cpu.__file__).with_name("routed_linear_cpu.c")
# Around the ends of vectors, panels and blocks of every instruction set.
TOKENS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 65, 97]


def arguments(parts: Parts, out_features: int, bias: bool = True) -> tuple[Any, ...]:
    """Arguments of `routed_linear` after x."""
    sizes = [[len(part[side]) for part in parts] for side in (0, 1)]
    ins, outs = (
        torch.tensor([index for part in parts for index in part[side]], dtype=torch.int64) for side in (0, 1)
    )
    weight = torch.randn(sum(k * n for k, n in zip(*sizes, strict=True)))
    return weight, torch.randn(out_features) if bias else None, ins, outs, *sizes, out_features


def check(x: Tensor, args: tuple[Any, ...]) -> Tensor:
    """Compare with the float64 reference; errors count beside the sum of absolute terms, as rounding does."""

    def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return kernel.routed_linear_reference(
            x.double(), weight.double(), None if bias is None else bias.double(), *args[2:]
        )

    got = kernel.routed_linear(x, *args)
    weight, bias = args[:2]
    terms = exact(x.abs(), weight.abs(), None if bias is None else bias.abs())
    assert ((got - exact(x, weight, bias)).abs() <= 2e-6 * terms).all()
    return got


def ragged() -> Parts:
    """Disjoint outputs, 50 of 400 dead; inputs shared; tall, flat and single; consecutive and not."""
    draw = np.random.default_rng(0)
    shapes = [(1, 1), (200, 130), (17, 64), (16, 65), (3, 9), (100, 1), (33, 80)]
    parts, begin = [], 0
    for number, (k, n) in enumerate(shapes):
        ins = np.arange(5, 5 + k) if number % 2 else draw.permutation(230)[:k]
        outs = np.arange(begin, begin + n)
        parts.append((ins.tolist(), (outs if number % 3 else draw.permutation(outs)).tolist()))
        begin += n
    return parts


def narrow() -> Parts:
    """Few inputs each, consecutive outputs around the ends of vectors and tiles, 99 of 400 dead."""
    draw = np.random.default_rng(0)
    parts, begin = [], 20
    for number, n in enumerate((1, 5, 15, 16, 17, 24, 40, 70, 113)):
        parts.append((draw.permutation(230)[: number + 1].tolist(), list(range(begin, begin + n))))
        begin += n
    return parts


LAYERS = pytest.mark.parametrize("parts", [ragged(), narrow()], ids=["ragged", "narrow"])


@LAYERS
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_number_of_tokens(tokens: int, parts: Parts) -> None:
    torch.manual_seed(tokens)
    check(torch.randn(tokens, 230), arguments(parts, 400, bias=tokens % 2 == 0))


def test_narrow_sub_operators_have_a_way_of_their_own() -> None:
    """Otherwise the tests of them would test nothing."""
    flags = []
    for parts in (ragged(), narrow()):
        ins, outs, *sizes = arguments(parts, 400)[2:6]
        layer: Any = routing_of(ins, outs, sizes[0], sizes[1], 230, 400).table._kept[0]
        flags.append(layer.narrow)
    assert flags == [0, 1]


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("tokens", [9, 130])
def test_activation_and_gate_follow_narrow_sums(tokens: int, gated: bool) -> None:
    args, x = arguments(narrow(), 400), torch.randn(tokens, 230)
    times = torch.randn(tokens, 400) if gated else None
    z = kernel.routed_linear_reference(x.double(), args[0].double(), args[1].double(), *args[2:])
    expected = torch.nn.functional.silu(z) * (1.0 if times is None else times)
    given: list[Any] = [x, *args, "silu", times]
    got = kernel.routed_linear(*given)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@LAYERS
@pytest.mark.parametrize("options", [["-mno-avx512f"], ["-mno-avx"], ["-O0"]], ids=" ".join)
@pytest.mark.parametrize("tokens", [1, 7, 9, 40])
def test_every_instruction_set(
    options: list[str], tokens: int, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = load(SOURCE, "-ffp-contract=fast", *options)
    if library is None:
        pytest.skip("this compiler is for another processor")
    monkeypatch.setattr(routed_linear_cpu, "compiled_products", lambda: library.gradtrace_routed_linear)
    torch.manual_seed(tokens)
    check(torch.randn(tokens, 230), arguments(parts, 400))


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, int, Parts]:
    features, out_features = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    index = st.integers(0, features - 1)
    parts = draw(
        st.lists(
            st.tuples(
                st.lists(index, max_size=40),
                st.lists(st.integers(0, out_features - 1), max_size=40, unique=True),
            ),
            max_size=5,
        )
    )
    return features, out_features, parts


@given(layers(), st.integers(0, 40), st.booleans())
def test_whatever_a_layer_holds(layer: tuple[int, int, Parts], tokens: int, bias: bool) -> None:
    features, out_features, parts = layer
    check(torch.randn(tokens, features), arguments(parts, out_features, bias))


@pytest.mark.parametrize("tokens", [1, 6, 20])
def test_thousands_of_sub_operators(tokens: int) -> None:
    parts = [([i, (7 * i) % 3000], [i]) for i in range(3000)]
    check(torch.randn(tokens, 3000), arguments(parts, 3000))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("step", [3, 40], ids=["ragged", "narrow"])
@pytest.mark.parametrize("tokens", [1, 8, 16, 200, 600])
def test_any_number_of_threads_gives_the_same_bits(tokens: int, step: int) -> None:
    parts: Parts = [(list(range(s, 700, step)), list(range(256 * s, 256 * s + 256))) for s in range(3)]
    x, args, results = torch.randn(tokens, 700), arguments(parts, 768), []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(check(x, args))
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_what_lies_around_x_and_weight_is_never_read_into_a_result() -> None:
    """A vector is longer than the end of a row: NaN stands on every side."""
    args = arguments([([0, 1, 2, 3, 4], [0, 1, 2]), ([4, 2, 0], [4])], 5)
    room = torch.full((40,), float("nan"))
    weight = room[10:28]
    weight.copy_(args[0])
    for tokens in (1, 5, 9, 17):
        around = torch.full((tokens, 15), float("nan"))
        x = around[:, 5:10]
        x.normal_()
        y = kernel.routed_linear(x, weight, *args[1:])
        torch.testing.assert_close(y, kernel.routed_linear_reference(x.clone(), weight.clone(), *args[1:]))


def test_memory_that_runs_out_is_an_error_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments([([0, 1], [0])], 1)
    ins, outs, *sizes = args[2:6]
    layer: Any = routing_of(ins, outs, sizes[0], sizes[1], 2, 1).table._kept[0]
    layer.longest = 1 << 58  # what one vector for each of these would take is not to be had
    with pytest.raises(MemoryError, match="no room"):
        kernel.routed_linear(torch.randn(1, 2), *args)
