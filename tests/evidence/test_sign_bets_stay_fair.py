"""The e-value of `sign` is the mixture it claims to be, of mean at most 1 under the null at any time."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import pytest
from scipy import integrate, signal

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.score import Scores, score
from gradtrace.evidence.sign import log_evalue


def sign(ledger: Any, shape: tuple[int, ...], **options: Any) -> tuple[Scores, np.ndarray[Any, Any]]:
    scores = score(ledger, {"w": np.ones(shape)}, "sign", **options)
    assert scores.evalues is not None
    assert scores.pvalues is not None
    np.testing.assert_allclose(scores.pvalues["w"], np.minimum(1, 1 / scores.evalues["w"]), rtol=1e-12)
    return scores, scores.evalues["w"]


@pytest.mark.parametrize(("heads", "tails"), [(0, 0), (1, 0), (5, 2), (0, 9), (20, 20)])
@pytest.mark.parametrize("prior", [0.5, 1.0, 8.0])
def test_the_evalue_is_the_mean_winnings_over_the_prior(heads: int, tails: int, prior: float) -> None:
    def winnings(theta: float) -> float:
        return float((2 * theta) ** heads * (2 - 2 * theta) ** tails)

    if prior == 0.5:  # theta = sin^2(x) takes the prior's two poles away
        expected = integrate.quad(lambda x: winnings(np.sin(x) ** 2) * 2 / np.pi, 0, np.pi / 2)[0]
    else:
        weight = integrate.quad(lambda p: (p * (1 - p)) ** (prior - 1), 0, 1)[0]
        expected = integrate.quad(lambda p: winnings(p) * (p * (1 - p)) ** (prior - 1), 0, 1)[0] / weight
    found = np.exp(log_evalue(np.array(float(heads - tails)), np.array(float(heads + tails)), prior))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tosses", [1, 2, 7, 40])
@pytest.mark.parametrize("prior", [0.5, 1.0, 8.0])
def test_under_a_fair_coin_its_mean_is_one(tosses: int, prior: float) -> None:
    heads = np.arange(tosses + 1.0)
    chances = np.array([comb(tosses, int(h)) for h in heads]) / 2.0**tosses
    evalues = np.exp(log_evalue(2 * heads - tosses, np.full(tosses + 1, float(tosses)), prior))
    assert chances @ evalues == pytest.approx(1, rel=1e-12)


def test_stopping_at_the_best_moment_does_not_break_it() -> None:
    votes = np.random.default_rng(0).choice([-1.0, 1.0], size=(20_000, 100)).cumsum(axis=1)
    best = log_evalue(votes, np.broadcast_to(np.arange(1.0, 101), votes.shape), 1.0).max(axis=1)
    assert np.mean(best >= np.log(20)) <= 0.05


@pytest.mark.parametrize("quiet", [0.0, 0.3, 0.9])
def test_windows_without_a_vote_never_make_it_larger(
    quiet: float, make_gradient_ledger: Callable[..., Any]
) -> None:
    generator = np.random.default_rng(3)
    gradients = generator.normal(0.3, 1, size=(60, 10, 10)) * (generator.random((60, 10, 10)) >= quiet)
    scores, evalues = sign(make_gradient_ledger(gradients, window_steps=4), (10, 10))
    windows = gradients.reshape(15, 4, 10, 10).sum(axis=1)
    votes, tosses = np.sign(windows).sum(axis=0), (windows != 0).sum(axis=0).astype(float)
    true = np.exp(log_evalue(votes, tosses, 1.0))
    assert (evalues <= true * (1 + 1e-12)).all()
    assert (scores["w"] <= np.abs(votes) / np.sqrt(np.maximum(tosses, 1)) + 1e-12).all()
    if quiet == 0:
        np.testing.assert_allclose(evalues, true, rtol=1e-12)


def test_under_autocorrelation_windows_vote_fairly_and_steps_do_not(
    make_gradient_ledger: Callable[..., Any],
) -> None:
    noise = np.random.default_rng(0).normal(size=(2020, 4000))
    gradients = signal.lfilter([1], [1, -0.8], noise, axis=0)[100:].reshape(1920, 40, 100)
    _, by_window = sign(make_gradient_ledger(gradients), (40, 100))
    _, by_step = sign(make_gradient_ledger(gradients, window_steps=1), (40, 100))
    assert np.mean(by_window > 20) < 0.005
    assert np.mean(by_step > 20) > 0.08


def test_a_direction_is_found_and_nothing_is_said_without_support(
    make_gradient_ledger: Callable[..., Any],
) -> None:
    gradients = np.random.default_rng(0).normal(size=(1280, 3, 50))
    gradients[:, 0] += 0.4
    gradients[:, 1] = 0
    scores, evalues = sign(make_gradient_ledger(gradients), (3, 50))
    assert (evalues[0] > 100).mean() > 0.8
    assert (evalues[1] == 1).all()
    assert (scores["w"][1] == 0).all()


def test_as_many_windows_as_there_may_be_do_not_overflow(make_ledger: Callable[..., Any]) -> None:
    many = {"w": np.array([[10**6, 0]])}
    ledger = make_ledger({"w": (1, 2)}, windows=10**6, events=many, window_votes=many)
    _, evalues = sign(ledger, (1, 2))
    assert np.isfinite(evalues).all()
    assert evalues[0, 0] > 1e300


@pytest.mark.parametrize("concentration", [0, -1, "a", True, float("inf"), float("nan")])
def test_a_concentration_is_a_positive_number(concentration: Any, make_ledger: Callable[..., Any]) -> None:
    with pytest.raises(InvalidValueError, match="concentration: expected a positive number"):
        score(make_ledger({"w": (1, 2)}), {"w": np.ones((1, 2))}, "sign", concentration=concentration)
