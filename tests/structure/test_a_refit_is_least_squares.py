"""The refitted weights are those that `torch.linalg.lstsq` finds on the raw inputs, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.structure.least_squares import mean_square, refit

Array = NDArray[np.float64]
TINY = 1e-11


def inputs_of(rng: np.random.Generator, positions: int, size: int, rank: int | None = None) -> Array:
    """Correlated inputs with a mean, (positions, size)."""
    mixing = rng.normal(size=(rank or size, size))
    return np.asarray(rng.normal(size=(positions, rank or size)) @ mixing + rng.normal(size=size), np.float64)


def moments_of(x: Array) -> tuple[Array, Array]:
    return x.T @ x / len(x), x.mean(0)


def mask_of(rng: np.random.Generator, shape: tuple[int, int], group: int) -> NDArray[np.bool_]:
    """Rows in groups that share an input set; the last group is ragged, one row is dropped, one is whole."""
    sets = rng.random((-(-shape[0] // group), shape[1])) < 0.5
    mask = np.repeat(sets, group, axis=0)[: shape[0]]
    mask[0], mask[-1] = False, True
    return np.asarray(mask, np.bool_)


def oracle(weight: Array, kept: NDArray[np.bool_], x: Array, bias: bool) -> tuple[Array, Array]:
    """Row by row on the raw inputs, with a column of ones for the bias: (weight, shift)."""
    found, shift = np.zeros_like(weight), np.zeros(len(weight))
    for row in range(len(weight)):
        columns = torch.from_numpy(x[:, kept[row]])
        if bias:
            columns = torch.cat([columns, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        target = torch.from_numpy(x @ weight[row])[:, None]
        if columns.shape[1]:
            best = torch.linalg.lstsq(columns, target).solution[:, 0].numpy()
            found[row, kept[row]] = best[: kept[row].sum()]
            shift[row] = best[-1] if bias else 0
    return found, shift


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "group"), [((7, 5), 1), ((13, 9), 4), ((10, 17), 3), ((4, 1), 2)])
def test_it_is_what_lstsq_finds(shape: tuple[int, int], group: int, bias: bool) -> None:
    rng = np.random.default_rng(sum(shape))
    weight, x = rng.normal(size=shape), inputs_of(rng, 300, shape[1])
    kept = mask_of(rng, shape, group)
    second, mean = moments_of(x)
    found = refit(weight, kept, second, mean if bias else None, TINY)
    expected, shift = oracle(weight, kept, x, bias)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-7, atol=1e-7)
    assert not found.weight[~kept].any()
    if bias:
        assert found.shift is not None
        np.testing.assert_allclose(found.shift, shift, rtol=1e-7, atol=1e-7)
    else:
        assert found.shift is None


def test_rows_that_keep_everything_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(6, 4)), inputs_of(rng, 50, 4)
    second, mean = moments_of(x)
    found = refit(weight, np.ones((6, 4), np.bool_), second, mean)
    assert found.shift is not None
    assert np.array_equal(found.weight, weight)
    assert not found.shift.any()


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    rng = np.random.default_rng(1)
    x = inputs_of(rng, 200, 8)
    x[:, [1, 4]] = 0
    weight, kept = rng.normal(size=(5, 8)), np.ones((5, 8), np.bool_)
    kept[:, [0, 4]] = False
    second, mean = moments_of(x)
    found = refit(weight, kept, second, mean, TINY)
    assert np.array_equal(found.weight[:, 1], weight[:, 1])
    # What is dropped and never varies is missed by nobody.
    with_it = kept.copy()
    with_it[:, 4] = True
    np.testing.assert_allclose(
        refit(weight, with_it, second, mean, TINY).weight[:, [2, 3]], found.weight[:, [2, 3]]
    )


def test_constant_inputs_go_into_the_bias_exactly() -> None:
    rng = np.random.default_rng(2)
    x = np.tile(rng.normal(size=6), (40, 1))
    weight, kept = rng.normal(size=(4, 6)), rng.random((4, 6)) < 0.5
    second, mean = moments_of(x)
    found = refit(weight, kept, second, mean)
    assert found.shift is not None
    np.testing.assert_allclose(x @ found.weight.T + found.shift, x @ weight.T, rtol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gram_matrix_of_lower_rank_still_gives_the_least_error(bias: bool) -> None:
    rng = np.random.default_rng(3)
    x = inputs_of(rng, 500, 12, rank=3)
    weight, kept = rng.normal(size=(6, 12)), rng.random((6, 12)) < 0.6
    second, mean = moments_of(x)
    found = refit(weight, kept, second, mean if bias else None, 1e-9)
    shift = np.zeros(6) if found.shift is None else found.shift
    # Twelve inputs that move in three directions, some seven of them kept: nothing need be lost.
    np.testing.assert_allclose(x @ found.weight.T + shift, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert np.abs(found.weight).max() < 100


def test_a_system_that_rounding_made_indefinite_is_damped_until_it_is_not() -> None:
    rng = np.random.default_rng(4)
    x = inputs_of(rng, 400, 6, rank=2)
    second, mean = moments_of(x)
    second -= 1e-5 * np.diag(second).mean() * np.eye(6)
    kept = rng.random((3, 6)) < 0.7
    found = refit(rng.normal(size=(3, 6)), kept, second, mean, 1e-8)
    assert 1e-8 < found.damping <= 1e-3
    assert np.isfinite(found.weight).all()


def test_what_are_no_moments_is_refused() -> None:
    second = np.array([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1e-6]])
    kept = np.array([[True, True, False]])
    with pytest.raises(InvalidValueError, match="input moments: expected a matrix of second moments"):
        refit(np.ones((1, 3)), kept, second * -1e6 + np.diag([0, 0, 1e7]), None, 1e-3)


@pytest.mark.parametrize("damping", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_damping_that_is_none_is_refused(damping: object) -> None:
    with pytest.raises(InvalidValueError, match="damping: expected a finite number above 0"):
        refit(np.ones((1, 1)), np.ones((1, 1), np.bool_), np.ones((1, 1)), None, damping)  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    positions=st.integers(1, 30),
    damping=st.sampled_from([1e-6, 1e-3, 1.0]),
    bias=st.booleans(),
)
def test_the_error_is_never_above_that_of_the_mask_alone(
    seed: int, shape: tuple[int, int], positions: int, damping: float, bias: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight, kept = rng.normal(size=shape), rng.random(shape) < rng.random()
    x = inputs_of(rng, positions, shape[1]) * (rng.random(shape[1]) < 0.8)
    second, mean = moments_of(x)
    found = refit(weight, kept, second, mean if bias else None, damping)
    shift = 0 if found.shift is None else found.shift
    alone = ((x @ np.where(kept, 0, weight).T) ** 2).mean(0)
    compensated = ((x @ (weight - found.weight).T - shift) ** 2).mean(0)
    assert (compensated <= alone * (1 + 1e-9) + 1e-9 * np.trace(second)).all()


def test_the_mean_square_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(5)
    x, weight, constant = inputs_of(rng, 100, 5), rng.normal(size=(3, 5)), rng.normal(size=3)
    second, mean = moments_of(x)
    np.testing.assert_allclose(mean_square(weight, second), ((x @ weight.T) ** 2).mean(0))
    expected = ((x @ weight.T + constant) ** 2).mean(0)
    np.testing.assert_allclose(mean_square(weight, second, mean, constant), expected)
