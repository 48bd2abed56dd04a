"""The compiled pass adds a window as numpy does, to the last bit, and refuses what it could write beyond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradtrace.errors import MismatchError
from gradtrace.kernels import window_into_entry
from gradtrace.kernels.window_into_entry import (
    EntryTotals,
    WindowTotals,
    add_window,
    add_window_reference,
)

needs_compiler = pytest.mark.skipif(window_into_entry._compiled() is None, reason="needs a C compiler")
ODD = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-30, 3e38, -3e38]


def window(size: int, seed: int) -> WindowTotals:
    random = np.random.default_rng(seed)
    sums = (random.normal(size=size) * 10.0 ** random.integers(-25, 25, size)).astype(np.float32)
    sums[: len(ODD)] = ODD[:size]
    return WindowTotals(
        sums,
        np.abs(random.normal(size=size)).astype(np.float32),
        random.integers(0, 32767, size).astype(np.int16),
        random.integers(-32767, 32767, size).astype(np.int16),
    )


def entry(size: int) -> EntryTotals:
    def zeros(dtype: Any) -> Any:
        return np.zeros(size, dtype)

    floats = zeros(np.float32), zeros(np.float32), zeros(np.float32)
    return EntryTotals(*floats, zeros(np.uint32), zeros(np.int32), zeros(np.int32))


@needs_compiler
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1023, 100_003])
def test_several_windows_give_the_bits_of_numpy(size: int) -> None:
    ours, numpys = entry(size), entry(size)
    for seed in range(3):
        add_window(ours, window(size, seed))
        add_window_reference(numpys, window(size, seed))
    for name, mine, theirs in zip(ours._fields, ours, numpys, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


def test_the_reference_is_the_formula_in_float64() -> None:
    size = 501
    sums, drawn = entry(size), [window(size, seed) for seed in range(4)]
    tame = [one._replace(grad_sum=np.clip(np.nan_to_num(one.grad_sum), -1e9, 1e9)) for one in drawn]
    for one in tame:
        add_window_reference(sums, one)
    s = np.stack([one.grad_sum for one in tame]).astype(np.float64)
    np.testing.assert_allclose(sums.grad_sum, s.sum(0), rtol=1e-6, atol=1e-6 * np.abs(s).max())
    np.testing.assert_allclose(sums.window_sumsq, (s * s).sum(0), rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(sums.window_votes, np.sign(s).sum(0))
    np.testing.assert_array_equal(sums.events, sum(one.events.astype(np.int64) for one in tame))
    np.testing.assert_array_equal(sums.votes, sum(one.votes.astype(np.int64) for one in tame))


def test_without_a_compiler_it_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_into_entry, "_compiled", lambda: None)
    ours, numpys = entry(100), entry(100)
    add_window(ours, window(100, 1))
    add_window_reference(numpys, window(100, 1))
    for mine, theirs in zip(ours, numpys, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("grad_sum", np.zeros(9, np.float64)),
        ("events", np.zeros(8, np.int16)),
        ("votes", np.zeros(18, np.int16)[::2]),
        ("grad_sumsq", np.zeros((3, 3), np.float32)),
    ],
)
def test_an_array_that_does_not_fit_is_named(name: str, array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(MismatchError, match=name):
        add_window(entry(9), window(9, 0)._replace(**{name: array}))
