"""The compiled CPU pass adds the very bits that plain torch adds, however many threads share the work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradtrace.kernels.accumulate import Totals, accumulate_reference_
from gradtrace.kernels.accumulate_cpu import accumulate_cpu_, compiled_pass

pytestmark = pytest.mark.skipif(compiled_pass() is None, reason="needs a C compiler")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SPECIAL = [0.0, -0.0, 1.0, -2.5, 1e-8, 6e-8, -6e-5, 65504.0, float("inf"), float("-inf"), float("nan")]


def empty(length: int) -> Totals:
    return Totals(
        torch.zeros(length),
        torch.zeros(length),
        torch.zeros(length, dtype=torch.int16),
        torch.zeros(length, dtype=torch.int16),
    )


def assert_same(got: Totals, expected: Totals) -> None:
    for name in ("grad_sum", "events", "votes"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    # The reference joins small gradients, and then rounds a square before it adds it.
    torch.testing.assert_close(got.grad_sumsq, expected.grad_sumsq, rtol=3e-7, atol=0)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Tensor], dict[str, object]]:
    """Gradients of ragged sizes, dtypes, alignments and layouts, and what else a step may be given."""
    sizes = draw(st.lists(st.integers(0, 70), min_size=1, max_size=6))
    grads = []
    for size in sizes:
        value = st.one_of(st.sampled_from(SPECIAL), st.floats(width=16))
        shift, stride = draw(st.integers(0, 3)), draw(st.integers(1, 3))
        values = draw(st.lists(value, min_size=size, max_size=size))
        stored = torch.zeros(shift + size * stride, dtype=draw(st.sampled_from(DTYPES)))
        stored[shift::stride][:size] = torch.tensor(values, dtype=torch.float64).to(stored.dtype)
        grads.append(stored[shift::stride][:size])
    scale = draw(st.one_of(st.none(), st.sampled_from([0.5, 3.0, 1 / 1024])))
    skip = draw(st.one_of(st.none(), st.sampled_from([0.0, 1.0])))
    return grads, {
        "threshold": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "scale": None if scale is None else torch.tensor(scale),
        "skip": None if skip is None else torch.tensor(skip),
        "weight": draw(st.sampled_from([0, 1, 2, 64])),
    }


@given(steps())
def test_whatever_a_step_holds(step: tuple[list[Tensor], dict[str, object]]) -> None:
    grads, settings = step
    offsets = np.cumsum([3] + [grad.numel() + 1 for grad in grads]).tolist()
    got, expected = empty(offsets[-1] + 2), empty(offsets[-1] + 2)
    flags, expected_flags = (torch.full((len(grads),), -1, dtype=torch.int32) for _ in "ab")
    for _ in range(2):
        accumulate_cpu_(got, flags, grads, range(len(grads)), offsets[:-1], **settings)  # type: ignore[arg-type]
        accumulate_reference_(
            expected,
            expected_flags,
            grads,
            range(len(grads)),
            offsets[:-1],
            **settings,  # type: ignore[arg-type]
        )
    assert_same(got, expected)
    assert torch.equal(flags, expected_flags)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_gradients_on_any_number_of_threads(dtype: torch.dtype, threads: int) -> None:
    sizes = [300_007, 4, 70_000, 4096, 1]
    grads = [torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype) for size in sizes]
    grads[0][-1] = float("nan")
    grads[2].zero_()
    offsets = np.cumsum([0, *sizes]).tolist()
    got, expected = empty(offsets[-1]), empty(offsets[-1])
    flags, expected_flags = (torch.zeros(5, dtype=torch.int32) for _ in "ab")
    for _ in range(3):
        accumulate_cpu_(got, flags, grads, range(5), offsets[:-1])
        accumulate_reference_(expected, expected_flags, grads, range(5), offsets[:-1])
    assert_same(got, expected)
    assert torch.equal(flags, expected_flags)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number_is_read_exactly(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    totals, flags = empty(2**16), torch.zeros(1, dtype=torch.int32)
    accumulate_cpu_(totals, flags, [every], [0], [0])
    finite = torch.where(every.isfinite(), every.float(), 0.0)
    assert torch.equal(totals.grad_sum, finite)
    assert torch.equal(totals.events.bool(), finite != 0)
    assert torch.equal(totals.votes, finite.sign().to(torch.int16))
