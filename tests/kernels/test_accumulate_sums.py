"""What `accumulate_` adds equals a float64 loop over the elements, for every way that it runs.

Run plainly this tests the plain-torch form, the compiled one where there is a C compiler and, with a GPU, the
launched kernel; test_interpreter.py runs the same file under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtrace.kernels.accumulate import (
    EVENT,
    NONFINITE,
    SEEN,
    SKIPPED,
    Totals,
    accumulate_,
    accumulate_reference_,
)
from gradtrace.kernels.accumulate_cpu import accumulate_cpu_, compiled_pass
from gradtrace.kernels.accumulate_triton import accumulate_triton_

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
COMPILED = pytest.mark.skipif(compiled_pass() is None, reason="needs a C compiler")
# Longer than the block that the CPU works on, where the interpreter does not make that too slow.
LONG = 20_001 if INTERPRETED else 300_001
UNTOUCHED = -7  # in flags and, as a value, in every total before the first step


@dataclass(frozen=True)
class Way:
    run: Callable[..., None]
    device: str


WAYS = (
    [pytest.param(Way(accumulate_triton_, "cpu"), id="interpreter")]
    if INTERPRETED
    else [
        pytest.param(Way(accumulate_reference_, "cpu"), id="cpu-reference"),
        pytest.param(Way(accumulate_cpu_, "cpu"), id="cpu-compiled", marks=COMPILED),
        pytest.param(Way(accumulate_, "cuda"), id="gpu", marks=ON_GPU),
    ]
)
if torch.cuda.is_available() and not INTERPRETED:
    WAYS.append(pytest.param(Way(accumulate_reference_, "cuda"), id="gpu-reference", marks=ON_GPU))
pytestmark = pytest.mark.parametrize("way", WAYS)


@dataclass
class Book:
    """Totals with a gap of two elements before each parameter, and what they must become."""

    way: Way
    offsets: list[int]
    totals: Totals
    flags: Tensor
    sums: np.ndarray
    sumsq: np.ndarray
    events: np.ndarray
    votes: np.ndarray
    expected_flags: list[int]
    magnitude: float = 0.0

    @classmethod
    def of(cls, way: Way, sizes: Sequence[int]) -> Book:
        offsets, end = [], 1
        for size in sizes:
            offsets.append(end + 2)
            end += size + 2
        totals = Totals(
            torch.full((end,), UNTOUCHED, dtype=torch.float32, device=way.device),
            torch.full((end,), UNTOUCHED, dtype=torch.float32, device=way.device),
            torch.full((end,), UNTOUCHED, dtype=torch.int16, device=way.device),
            torch.full((end,), UNTOUCHED, dtype=torch.int16, device=way.device),
        )
        flags = torch.full((len(sizes),), UNTOUCHED, dtype=torch.int32, device=way.device)
        full = np.full(end, UNTOUCHED)
        return cls(
            way,
            offsets,
            totals,
            flags,
            full * 1.0,
            full * 1.0,
            full.copy(),
            full.copy(),
            [UNTOUCHED] * len(sizes),
        )

    def step(
        self,
        grads: Sequence[Tensor],
        slots: Sequence[int],
        threshold: float = 0.0,
        scale: float | None = None,
        skip: float | None = None,
        weight: int = 1,
    ) -> None:
        """Run the kernel and, element by element, the oracle."""
        device = self.way.device
        self.way.run(
            self.totals,
            self.flags,
            [grad.to(device) for grad in grads],
            slots,
            self.offsets,
            threshold=threshold,
            scale=None if scale is None else torch.tensor(scale, device=device),
            skip=None if skip is None else torch.tensor(skip, device=device),
            weight=weight,
        )
        for grad, slot in zip(grads, slots, strict=True):
            self._expect(grad, slot, threshold, scale, skip, weight)

    def _expect(
        self,
        grad: Tensor,
        slot: int,
        threshold: float,
        scale: float | None,
        skip: float | None,
        weight: int,
    ) -> None:
        if skip:
            self.expected_flags[slot] = SKIPPED
            return
        wide = grad.detach().reshape(-1).to(torch.float64 if grad.dtype == torch.float64 else torch.float32)
        values = wide.numpy() * wide.numpy().dtype.type(1.0 if scale is None else scale)
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32))
        event = finite & (np.abs(values) > values.dtype.type(threshold))
        added = np.where(finite, values, 0).astype(np.float32).astype(np.float64)
        at = slice(self.offsets[slot], self.offsets[slot] + values.size)
        self.sums[at] += weight * added
        self.sumsq[at] += weight * added**2
        self.events[at] += event
        self.votes[at] += weight * np.where(event, np.sign(values), 0).astype(np.int64)
        self.expected_flags[slot] = SEEN | EVENT * bool(event.any()) | NONFINITE * (not finite.all())
        self.magnitude = max(self.magnitude, weight * float(np.abs(added).max(initial=0.0)))

    def check(self, steps: int) -> None:
        slack = 2e-7 * steps * (abs(UNTOUCHED) + self.magnitude * steps)
        got = [total.cpu().numpy() for total in self.totals]
        np.testing.assert_array_equal(got[2], self.events)
        np.testing.assert_array_equal(got[3], self.votes)
        np.testing.assert_allclose(got[0], self.sums, rtol=0, atol=slack)
        np.testing.assert_allclose(got[1], self.sumsq, rtol=2e-7 * steps, atol=slack * max(self.magnitude, 1))
        assert self.flags.tolist() == self.expected_flags


def gradient(size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values, a third of them exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator)
    return (values * (torch.rand(size, generator=generator) > 1 / 3)).to(dtype)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 3, 1023, 1025, 4096, 4097, LONG])
def test_three_steps_add_up_to_the_float64_sums(way: Way, size: int, dtype: torch.dtype) -> None:
    book = Book.of(way, [size])
    for seed in range(3):
        book.step([gradient(size, dtype, seed)], [0])
    book.check(steps=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_threshold_and_scale_apply_in_the_dtype_that_decides(
    way: Way, threshold: float, scale: float | None, dtype: torch.dtype
) -> None:
    sizes = [5000, 7, 40, 5000]
    book = Book.of(way, sizes)
    for seed in range(2):
        grads = [gradient(size, dtype, seed + 10 * k) for k, size in enumerate(sizes)]
        book.step(grads, [0, 1, 2, 3], threshold=threshold, scale=scale)
    book.check(steps=2)


@pytest.mark.parametrize("size", [8, 5000])
@pytest.mark.parametrize("value", [0.25, 0.1, -0.1])
def test_an_element_at_the_threshold_is_no_event(way: Way, value: float, size: int) -> None:
    book = Book.of(way, [size, size])
    book.step([torch.full((size,), value), torch.full((size,), 2 * value)], [0, 1], threshold=abs(value))
    book.check(steps=1)
    assert book.flags.tolist() == [SEEN, SEEN | EVENT]


def test_gradients_of_all_dtypes_and_many_sizes_go_in_one_call(way: Way) -> None:
    sizes = [5, 4100, 17, 0, 4096, 1, 9000, 64]
    book = Book.of(way, sizes)
    for seed in range(2):
        grads = [gradient(size, DTYPES[(k + seed) % 4], seed * 100 + k) for k, size in enumerate(sizes)]
        book.step(grads, range(8))
    book.check(steps=2)


def test_only_the_named_slots_are_touched_whatever_their_order(way: Way) -> None:
    book = Book.of(way, [30, 5000, 11, 6000])
    book.step([gradient(6000), gradient(30)], [3, 0])
    book.check(steps=1)
    assert [flag == UNTOUCHED for flag in book.flags.tolist()] == [False, True, True, False]


def transposed() -> Tensor:
    return gradient(60 * 70).view(60, 70).t()


def channels_last() -> Tensor:
    return gradient(2 * 30 * 9 * 11).view(2, 30, 9, 11).to(memory_format=torch.channels_last)


def unaligned() -> Tensor:
    return gradient(5001)[1:]


def unaligned_halves() -> Tensor:
    return gradient(5004, torch.bfloat16)[3:]


def strided() -> Tensor:
    return gradient(9000)[::2]


def expanded() -> Tensor:
    return gradient(1).expand(4500)


def scalar() -> Tensor:
    return torch.tensor(-0.5)


@pytest.mark.parametrize(
    "make", [transposed, channels_last, unaligned, unaligned_halves, strided, expanded, scalar]
)
def test_elements_go_to_their_row_major_place_whatever_the_layout(
    way: Way, make: Callable[[], Tensor]
) -> None:
    grad = make()
    book = Book.of(way, [grad.numel(), 3])
    book.step([grad, gradient(3)], [0, 1])
    book.check(steps=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [9, 5000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_element_adds_nothing_and_sets_its_flag(
    way: Way, bad: float, size: int, dtype: torch.dtype
) -> None:
    book = Book.of(way, [size, 12, 5000])
    grads = [gradient(size, dtype), gradient(12, dtype, 1), gradient(5000, dtype, 2)]
    grads[0][size - 2] = bad
    book.step(grads, [0, 1, 2])
    book.check(steps=1)
    assert [bool(flag & NONFINITE) for flag in book.flags.tolist()] == [True, False, False]


def test_a_gradient_without_one_finite_element_has_no_event(way: Way) -> None:
    book = Book.of(way, [3, 5000])
    book.step([torch.full((3,), float("nan")), torch.full((5000,), float("inf"))], [0, 1])
    book.check(steps=1)
    assert book.flags.tolist() == [SEEN | NONFINITE, SEEN | NONFINITE]


@pytest.mark.parametrize("size", [6, 4500])
def test_an_all_zero_gradient_is_seen_without_event(way: Way, size: int) -> None:
    book = Book.of(way, [size, size, 2])
    book.step([torch.zeros(size), -torch.zeros(size), gradient(2)], [0, 1, 2])
    book.check(steps=1)
    assert book.flags.tolist()[:2] == [SEEN, SEEN]


@pytest.mark.parametrize("value", [1e-60, -1e-60, 1e300, 3.4028235677973366e38, 3.4028235677973362e38])
def test_float64_decides_events_before_it_is_rounded_to_float32(way: Way, value: float) -> None:
    book = Book.of(way, [5])
    with np.errstate(over="ignore"):
        book.step([torch.tensor([0.0, value, 0.0, 0.0, 0.0], dtype=torch.float64)], [0])
        got = [total.cpu().numpy()[book.offsets[0] + 1] for total in book.totals]
    assert got[2] == book.events[book.offsets[0] + 1]
    assert got[3] == book.votes[book.offsets[0] + 1]
    assert got[0] == np.float32(book.sums[book.offsets[0] + 1])
    assert book.flags.tolist() == book.expected_flags


@pytest.mark.parametrize("value", [1e-40, -1e-45])
def test_a_denormal_gradient_is_an_event(way: Way, value: float) -> None:
    book = Book.of(way, [4, 5000])
    book.step([torch.full((4,), value), torch.full((5000,), value)], [0, 1])
    book.check(steps=1)
    assert book.flags.tolist() == [SEEN | EVENT, SEEN | EVENT]


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_skipped_step_leaves_only_its_flags(way: Way, skip: float) -> None:
    book = Book.of(way, [40, 5000, 3, 8])
    grads = [gradient(40), gradient(5000), gradient(3, torch.float64)]
    grads[1][7] = float("nan")
    book.step(grads, [0, 1, 2], skip=skip)
    book.check(steps=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [0.25, float("nan")])
def test_a_step_of_weight_k_stands_for_k_steps_and_one_of_weight_0_counts_events_only(
    way: Way, bad: float, dtype: torch.dtype
) -> None:
    book = Book.of(way, [5000, 9, 40])
    for seed, weight in enumerate([0, 8, 0, 1, 3]):
        grads = [gradient(size, dtype, seed + 9 * size) for size in (5000, 9, 40)]
        grads[0][77] = bad
        book.step(grads, [0, 1, 2], threshold=0.2, weight=weight)
        assert book.flags.tolist() == book.expected_flags
    book.check(steps=5)


def test_flags_are_of_one_step_and_not_of_those_before(way: Way) -> None:
    book = Book.of(way, [5000])
    book.step([torch.full((5000,), float("nan"))], [0])
    book.step([torch.zeros(5000)], [0])
    book.check(steps=2)
    assert book.flags.tolist() == [SEEN]


def test_no_gradient_at_all_changes_nothing(way: Way) -> None:
    book = Book.of(way, [5])
    book.step([], [])
    book.check(steps=1)


def test_a_gradient_that_itself_requires_one_is_only_read(way: Way) -> None:
    book = Book.of(way, [5000, 4])
    book.step([gradient(5000).requires_grad_(), gradient(4).requires_grad_()], [0, 1])
    book.check(steps=1)
    assert not any(total.requires_grad for total in book.totals)


@pytest.fixture
def far(way: Way, tmp_path: Path) -> Totals:
    """Totals longer than 2**31 elements; sparse files on the CPU, little of them ever written."""
    length = 2**31 + 10_000
    if way.device == "cuda":
        if torch.cuda.mem_get_info()[0] < 27 * 2**30:
            pytest.skip("needs 27 GiB of device memory")
        dtypes = (torch.float32, torch.float32, torch.int16, torch.int16)
        return Totals(*(torch.zeros(length, dtype=dtype, device="cuda") for dtype in dtypes))
    names = {"a": np.float32, "b": np.float32, "c": np.int16, "d": np.int16}
    return Totals(
        *(
            torch.from_numpy(np.memmap(tmp_path / name, dtype, mode="w+", shape=(length,)))
            for name, dtype in names.items()
        )
    )


def test_ranges_past_two_to_the_31_are_reached(way: Way, far: Totals) -> None:
    offsets = [2**31 - 2000, 2**31 + 5003]
    grads = [gradient(5000).to(way.device), gradient(7).to(way.device)]
    flags = torch.zeros(2, dtype=torch.int32, device=way.device)
    way.run(far, flags, grads, [0, 1], offsets)
    for grad, offset in zip(grads, offsets, strict=True):
        at = slice(offset, offset + grad.numel())
        assert torch.equal(far.grad_sum[at], grad)
        assert torch.equal(far.events[at], (grad != 0).to(torch.int16))
        assert torch.equal(far.votes[at], grad.sign().to(torch.int16))
    assert flags.tolist() == [SEEN | EVENT, SEEN | EVENT]
