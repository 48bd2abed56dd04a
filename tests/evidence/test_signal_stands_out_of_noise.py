"""What Marchenko-Pastur calls signal is what was planted; pure noise scores nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.marchenko_pastur import noise_of, signal_edge
from gradtrace.evidence.score import score


def planted(shape: tuple[int, int], strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.normal(size=(side, 2)))[0] for side in shape)
    signal = strength * left @ np.diag([1.0, 0.8]) @ right.T
    return signal, signal + generator.normal(0, 0.1, shape)


@pytest.mark.parametrize("shape", [(80, 120), (120, 80), (60, 60)])
@pytest.mark.parametrize(
    "options", [{"initializer": stats.norm(0, 0.1)}, {"noise": "estimated"}], ids=["known", "estimated"]
)
def test_a_planted_signal_is_found_and_little_else(shape: tuple[int, int], options: dict[str, Any]) -> None:
    signal, weight = planted(shape, strength=8.0)
    found = score(None, {"w": weight}, "marchenko-pastur", **options)["w"]
    left, values, right = np.linalg.svd(weight)
    np.testing.assert_allclose(found, np.abs((left[:, :2] * values[:2]) @ right[:2]), atol=1e-9)
    assert np.corrcoef(found.ravel(), np.abs(signal).ravel())[0, 1] > 0.9
    assert (
        np.corrcoef(found.ravel(), np.abs(signal).ravel())[0, 1]
        > np.corrcoef(np.abs(weight).ravel(), np.abs(signal).ravel())[0, 1]
    )


@pytest.mark.parametrize("shape", [(50, 200), (300, 40), (90, 90)])
@pytest.mark.parametrize("draw", [stats.norm(0, 0.3), stats.uniform(-0.5, 1)], ids=["normal", "uniform"])
def test_noise_exceeds_the_edge_about_once_in_twenty(shape: tuple[int, int], draw: Any) -> None:
    edge = signal_edge(float(draw.std()), shape)
    generator = np.random.default_rng(2)
    exceeded = [np.linalg.norm(draw.rvs(shape, random_state=generator), 2) > edge for _ in range(200)]
    assert 0.0 <= np.mean(exceeded) <= 0.1


def test_a_fresh_layer_scores_nothing_and_says_so_with_zeros() -> None:
    torch.manual_seed(1)
    scores = score(None, nn.Sequential(nn.Linear(64, 100), nn.Conv2d(8, 30, 3)), "marchenko-pastur")
    assert set(scores) == {"0.weight", "1.weight"}
    assert all((one == 0).all() for one in scores.values())


@pytest.mark.parametrize("shape", [(40, 160), (200, 200), (300, 70)])
def test_the_estimated_noise_is_the_true_one(shape: tuple[int, int]) -> None:
    _, weight = planted(shape, strength=5.0)
    values = np.linalg.svd(weight, compute_uv=False)
    assert noise_of(values, shape) == pytest.approx(0.1, rel=0.03)


def test_the_noise_follows_the_recorded_decay(
    make_ledger: Callable[..., Any], update: Callable[..., Any]
) -> None:
    # Decayed to a tenth, a signal of a fifth of the old edge stands out; against the old noise it does not.
    signal, weight = planted((80, 120), strength=1.0)
    weight = signal + (weight - signal) * 0.1
    history = (update("AdamW", 1, lr=0.9, weight_decay=1.0),)
    options = {"initializer": stats.norm(0, 0.1)}
    ledger = make_ledger({"w": (80, 120)}, history=history)
    assert (score(ledger, {"w": weight}, "marchenko-pastur", **options)["w"] > 0).any()
    assert not score(ledger, {"w": weight}, "marchenko-pastur", decay=False, **options)["w"].any()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 50)])
def test_odd_shapes_have_scores(shape: tuple[int, int]) -> None:
    found = score(None, {"w": np.full(shape, 0.5)}, "marchenko-pastur", initializer=stats.norm(0, 0.01))["w"]
    np.testing.assert_allclose(found, np.full(shape, 0.5), rtol=1e-12)


@pytest.mark.parametrize("options", [{"noise": "median"}, {"decay": "no"}, {"initializer": "normal"}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=f"{next(iter(options))}: expected"):
        score(None, {"w": np.ones((2, 2))}, "marchenko-pastur", **options)
