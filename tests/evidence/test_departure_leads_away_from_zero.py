"""`departure` is drift where a weight grew from zero, and silent where it only walked to zero."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradtrace.evidence.confirm import confirm
from gradtrace.evidence.departure import outward_share
from gradtrace.evidence.score import Scores, score

RATE, STEPS = 0.004, 1280


def trained(
    wanted: np.ndarray[Any, Any],
    opening: np.ndarray[Any, Any],
    seed: int,
    make_gradient_ledger: Callable[..., Any],
) -> tuple[Any, np.ndarray[Any, Any]]:
    """Ledger and final weight of SGD on (w - wanted)^2 / 2 with noisy gradients."""
    noise = np.random.default_rng(seed).normal(0, 0.5, size=(STEPS, *wanted.shape))
    w, gradients = opening.copy(), np.empty_like(noise)
    for step in range(STEPS):
        gradients[step] = w - wanted + noise[step]
        w -= RATE * gradients[step]
    ledger = make_gradient_ledger(gradients)
    ledger["w"].opening = opening
    ledger["w"].history = (SimpleNamespace(kind="SGD", steps=STEPS, settings={"lr": RATE}),)
    return ledger, w


def both(ledger: Any, weight: np.ndarray[Any, Any]) -> tuple[Scores, Scores]:
    return score(ledger, {"w": weight}, "drift"), score(ledger, {"w": weight}, "departure")


@pytest.mark.parametrize(
    ("opening", "weight", "share"),
    [
        (0.0, 2.0, 1.0),  # from nothing: all of the way
        (1.0, 3.0, 1.0),
        (-1.0, -3.0, 1.0),
        (2.0, 0.5, 0.0),  # further in
        (2.0, 0.0, 0.0),
        (1.0, -3.0, 0.75),  # through zero: what lies beyond it
        (-0.5, 0.5, 0.5),
        (1.0, 1.0, 0.0),  # nowhere
    ],
)
def test_the_share_is_the_part_of_the_way_that_leads_away_from_zero(
    opening: float, weight: float, share: float
) -> None:
    pull = np.array([-(weight - opening)])
    assert outward_share(np.array([opening]), np.array([weight]), pull) == pytest.approx([share])
    assert outward_share(np.array([opening]), np.array([weight]), -pull) == [0.0]


def test_from_zero_it_is_drift(make_gradient_ledger: Callable[..., Any]) -> None:
    wanted = np.where(np.arange(1200).reshape(30, 40) % 4 == 0, 0.5, 0.0)
    ledger, weight = trained(wanted, np.zeros_like(wanted), 0, make_gradient_ledger)
    drift, departure = both(ledger, weight)
    pulled = ledger["w"].grad_sum * weight < 0
    assert pulled.mean() > 0.99
    np.testing.assert_allclose(departure["w"][pulled], drift["w"][pulled], rtol=1e-12)
    assert drift.pvalues is not None
    assert departure.pvalues is not None
    np.testing.assert_allclose(departure.pvalues["w"][pulled], drift.pvalues["w"][pulled], rtol=1e-12)


@pytest.mark.parametrize("method", ["local", "bh", "by"])
def test_what_only_walked_to_zero_is_not_confirmed(
    method: Any, make_gradient_ledger: Callable[..., Any]
) -> None:
    generator = np.random.default_rng(1)
    there = generator.random((40, 50)) < 0.25
    wanted = np.where(there, generator.choice([-1.0, 1.0], there.shape), 0.0)
    opening = generator.uniform(-1, 1, there.shape)
    drift, departure = both(*trained(wanted, opening, 2, make_gradient_ledger))
    walked = confirm(drift, method, 0.1)["w"]
    assert (walked & ~there).sum() > 0.3 * walked.sum()
    found = confirm(departure, method, 0.1)["w"]
    assert (found & ~there).sum() <= 0.12 * found.sum()
    assert (found & there).sum() > 0.4 * there.sum()


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
def test_where_nothing_is_wanted_the_level_is_kept(
    spread: float, make_gradient_ledger: Callable[..., Any]
) -> None:
    opening = np.random.default_rng(3).uniform(-spread, spread, (40, 50))
    _, departure = both(*trained(np.zeros_like(opening), opening, 4, make_gradient_ledger))
    assert departure.pvalues is not None
    for level in (0.01, 0.05, 0.1):
        assert np.mean(departure.pvalues["w"] <= level) <= 1.2 * level


def test_decay_alone_is_no_way_back(make_ledger: Callable[..., Any], update: Callable[..., Any]) -> None:
    # Held at 1 by its gradient, against a decay that would have left 0.95^10.
    ledger = make_ledger(
        {"w": (1, 1)},
        history=(update("AdamW", 10, lr=0.1, weight_decay=0.5),),
        opening={"w": np.ones((1, 1))},
        grad_sum={"w": np.full((1, 1), -2.0)},
    )
    drift, departure = both(ledger, np.ones((1, 1)))
    assert departure["w"] == pytest.approx(drift["w"])
    assert drift["w"] > 0


def test_with_a_decay_that_is_unknown_no_more_is_confirmed(
    make_ledger: Callable[..., Any], update: Callable[..., Any]
) -> None:
    arrays = {"opening": {"w": np.ones((1, 1))}, "grad_sum": {"w": np.full((1, 1), -2.0)}}
    known = make_ledger({"w": (1, 1)}, history=(update("AdamW", 10, lr=0.1, weight_decay=0.5),), **arrays)
    unknown = make_ledger({"w": (1, 1)}, history=(update("Muon", 10, lr=0.1, weight_decay=0.5),), **arrays)
    weight = np.full((1, 1), 1.5)
    assert 0 < both(unknown, weight)[1]["w"] <= both(known, weight)[1]["w"]


def test_what_was_tested_has_a_pvalue_below_one(make_ledger: Callable[..., Any]) -> None:
    ledger = make_ledger(
        {"w": (1, 2)},
        opening={"w": np.full((1, 2), 2.0)},
        grad_sum={"w": np.array([[2.0, 0.0]])},
        window_sumsq={"w": np.array([[1.0, 0.0]])},
        grad_sumsq={"w": np.array([[1.0, 0.0]])},
        events={"w": np.array([[7, 0]])},
    )
    _, departure = both(ledger, np.full((1, 2), 1.0))
    assert departure.pvalues is not None
    tested, untested = departure.pvalues["w"][0]
    assert 0.999 < tested < 1
    assert untested == 1
