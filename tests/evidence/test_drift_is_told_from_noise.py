"""`drift` is Student's test of window sums, keeps its level under autocorrelation, and never overstates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import signal, stats

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.score import Scores, score

LEVELS = (0.01, 0.05, 0.1)


def ar1(steps: int, size: int, rho: float, seed: int) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(seed).normal(size=(steps + 100, size))
    return np.asarray(signal.lfilter([1], [1, -rho], noise, axis=0)[100:])


def drift(ledger: Any, shape: tuple[int, ...]) -> tuple[Scores, np.ndarray[Any, Any]]:
    scores = score(ledger, {"w": np.ones(shape)}, "drift")
    assert scores.pvalues is not None
    return scores, scores.pvalues["w"]


def test_the_score_is_the_self_normalised_sum(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"w": (6, 7)}, windows=40, steps=40)
    scores, _ = drift(ledger, (6, 7))
    np.testing.assert_allclose(
        scores["w"], np.abs(ledger["w"].grad_sum) / np.sqrt(ledger["w"].window_sumsq), rtol=1e-12
    )


@pytest.mark.parametrize("windows", [2, 3, 40])
def test_the_pvalue_is_students_of_the_window_sums(windows: int, make_ledger: Callable[..., Any]) -> None:
    # One step a window: there is no correlation within windows to take off.
    sums = np.random.default_rng(0).normal(0.3, 1, size=(windows, 8, 9))
    ledger = make_ledger(
        {"w": (8, 9)},
        windows=windows,
        steps=windows,
        grad_sum={"w": sums.sum(axis=0)},
        grad_sumsq={"w": (sums**2).sum(axis=0)},
        window_sumsq={"w": (sums**2).sum(axis=0)},
        events={"w": np.full((8, 9), 1000)},
    )
    expected = stats.ttest_1samp(sums, 0, axis=0).pvalue
    floor = 2.0 ** (1 - windows)
    np.testing.assert_allclose(drift(ledger, (8, 9))[1], np.maximum(expected, floor), rtol=1e-9)


@pytest.mark.parametrize("steps", [1280, 1307])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_under_the_null_the_level_is_kept_whatever_the_autocorrelation(
    rho: float, steps: int, make_gradient_ledger: Callable[..., Any]
) -> None:
    shares = []
    for seed in range(20):
        gradients = ar1(steps, 400, rho, seed).reshape(steps, 20, 20)
        _, pvalues = drift(make_gradient_ledger(gradients), (20, 20))
        shares.append([np.mean(pvalues < level) for level in LEVELS])
    for share, level in zip(np.mean(shares, axis=0), LEVELS, strict=True):
        assert 0.6 * level < share <= 1.2 * level


def test_the_naive_t_test_of_steps_would_reject_half_of_such_nulls() -> None:
    naive = stats.ttest_1samp(ar1(1280, 2000, 0.8, seed=0), 0, axis=0).pvalue
    assert np.mean(naive < 0.05) > 0.4


def test_the_level_is_kept_when_gradients_shrink_during_training(
    make_gradient_ledger: Callable[..., Any],
) -> None:
    scale = np.geomspace(1, 0.01, 1280)[:, None, None]
    gradients = scale * ar1(1280, 4000, 0.5, seed=1).reshape(1280, 40, 100)
    _, pvalues = drift(make_gradient_ledger(gradients), (40, 100))
    for level in (0.01, 0.05):
        assert np.mean(pvalues < level) <= 1.2 * level


def test_a_direction_is_found(make_gradient_ledger: Callable[..., Any]) -> None:
    gradients = ar1(1280, 2000, 0.8, seed=0).reshape(1280, 20, 100)
    gradients[:, :5] += 1.2
    scores, pvalues = drift(make_gradient_ledger(gradients), (20, 100))
    assert np.mean(pvalues[:5] < 1e-3) > 0.8
    assert scores["w"][:5].mean() > 3 * scores["w"][5:].mean()


@pytest.mark.parametrize("agreeing", [1, 2, 5, 9])
def test_few_supported_windows_are_never_strong_evidence(
    agreeing: int, make_gradient_ledger: Callable[..., Any]
) -> None:
    gradients = np.random.default_rng(0).normal(size=(3200, 2, 50)).astype(np.float32)
    gradients[:, 0, 0] = 0
    gradients[: 32 * agreeing : 32, 0, 0] = 0.25  # one equal gradient in each of so many of 100 windows
    _, pvalues = drift(make_gradient_ledger(gradients), (2, 50))
    assert pvalues[0, 0] >= 2.0 ** (1 - agreeing)


@pytest.mark.parametrize("supported", [2, 3, 4, 5, 7, 9])
@pytest.mark.parametrize("steps", [1, 4, 32])
@pytest.mark.parametrize("kind", ["alike", "normal", "unequal"])
def test_the_level_is_kept_where_few_windows_had_support(
    supported: int, steps: int, kind: str, make_gradient_ledger: Callable[..., Any]
) -> None:
    # Of 60 windows so many, each with a sum of random sign over its first steps.
    generator = np.random.default_rng(supported)
    sums = generator.choice([-1.0, 1.0], (supported, 1, 4_000))
    if kind == "normal":
        sums *= np.abs(generator.normal(size=sums.shape))
    if kind == "unequal":
        sums *= np.geomspace(1, 0.3, supported)[:, None, None]
    gradients = np.zeros((60, 32, 1, 4_000), np.float32)
    gradients[:supported, :steps] = sums[:, None]
    _, pvalues = drift(make_gradient_ledger(gradients.reshape(1920, 1, -1)), (1, 4_000))
    for level in LEVELS:
        assert np.mean(pvalues <= level) <= 1.2 * level
    assert pvalues.min() >= 0.999 * 2.0 ** (1 - supported)
    assert pvalues.max() < 1 or kind == "alike"


def test_without_support_there_is_no_evidence(make_gradient_ledger: Callable[..., Any]) -> None:
    gradients = np.random.default_rng(0).normal(size=(320, 3, 4))
    gradients[:, 1] = 0
    gradients[:, 2] *= 1e-30  # squares vanish in float32
    scores, pvalues = drift(make_gradient_ledger(gradients), (3, 4))
    assert scores["w"][1:].tolist() == [[0] * 4] * 2
    assert pvalues[1:].tolist() == [[1] * 4] * 2
    nothing, ones = drift(make_gradient_ledger(np.zeros((320, 3, 4))), (3, 4))
    assert not nothing["w"].any()
    assert (ones == 1).all()


def test_constant_gradients_are_the_strongest_evidence(make_gradient_ledger: Callable[..., Any]) -> None:
    scores, pvalues = drift(make_gradient_ledger(np.full((320, 1, 2), 0.1)), (1, 2))
    np.testing.assert_allclose(scores["w"], np.sqrt(10), rtol=1e-6)
    np.testing.assert_allclose(pvalues, 2.0**-9)


@pytest.mark.parametrize("by", ["drift", "sign"])
@pytest.mark.parametrize("steps", [1, 20])
def test_a_single_window_is_refused_with_the_way_out(
    by: str, steps: int, make_gradient_ledger: Callable[..., Any]
) -> None:
    with pytest.raises(
        InvalidValueError,
        match=rf"windows recorded of 'w': expected at least 2.*got 1, over {steps} steps.*window_steps",
    ):
        score(make_gradient_ledger(np.ones((steps, 2, 2))), {"w": np.ones((2, 2))}, by)


def test_sums_that_are_not_finite_are_refused_by_name(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger({"w": (1, 2)}, grad_sum={"w": np.array([[np.nan, 1.0]])})
    with pytest.raises(InvalidValueError, match="scores of 'w' by 'drift': expected finite numbers"):
        score(ledger, {"w": np.ones((1, 2))}, "drift")
