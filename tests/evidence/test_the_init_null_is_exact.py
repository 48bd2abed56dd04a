"""Under the null the p-values of `init` are uniform: torch's own initialization is the null."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from gradtrace.errors import InvalidValueError, UnknownNameError, UnsupportedError
from gradtrace.evidence.decay import decayed
from gradtrace.evidence.initializer import default_initializer
from gradtrace.evidence.null import Null
from gradtrace.evidence.score import score


def uniform(pvalues: NDArray[np.float64]) -> float:
    """The Kolmogorov-Smirnov p-value of "these are uniform"."""
    assert pvalues.min() >= 0
    assert pvalues.max() <= 1
    return float(stats.kstest(pvalues.ravel(), "uniform").pvalue)


MODULES = [
    pytest.param(lambda: nn.Linear(150, 90), "weight", id="linear"),
    pytest.param(lambda: nn.Conv1d(12, 24, 5, groups=3), "weight", id="conv1d-groups"),
    pytest.param(lambda: nn.Conv2d(7, 33, (3, 5)), "weight", id="conv2d"),
    pytest.param(lambda: nn.ConvTranspose2d(8, 12, 3, groups=2), "weight", id="conv-transpose2d"),
    pytest.param(lambda: nn.Embedding(200, 31), "weight", id="embedding"),
    pytest.param(lambda: nn.EmbeddingBag(200, 31), "weight", id="embedding-bag"),
    pytest.param(lambda: nn.Bilinear(11, 13, 17), "weight", id="bilinear"),
    pytest.param(lambda: nn.LSTM(19, 23, proj_size=9), "weight_ih_l0", id="lstm-ih"),
    pytest.param(lambda: nn.LSTM(19, 50, proj_size=21), "weight_hr_l0", id="lstm-hr"),
    pytest.param(lambda: nn.GRU(19, 23), "weight_hh_l0", id="gru-hh"),
    pytest.param(lambda: nn.MultiheadAttention(32, 4), "in_proj_weight", id="attention-in"),
    pytest.param(lambda: nn.MultiheadAttention(32, 4), "out_proj.weight", id="attention-out"),
    pytest.param(lambda: nn.MultiheadAttention(32, 4, kdim=24), "k_proj_weight", id="attention-k"),
]


@pytest.mark.parametrize(("build", "name"), MODULES)
def test_pvalues_of_a_fresh_module_are_uniform(build: Callable[[], nn.Module], name: str) -> None:
    torch.manual_seed(3)
    scores = score(None, build(), "init")
    assert scores.pvalues is not None
    assert uniform(scores.pvalues[name]) > 0.01


def test_a_subclass_of_a_known_module_is_known(make_ledger: Callable[..., Any]) -> None:
    class Words(nn.Embedding):
        pass

    torch.manual_seed(0)
    model = Words(300, 20)
    alone = score(None, model, "init")
    beside = score(make_ledger({"weight": (300, 20)}, module_class="Words"), model, "init")
    assert alone.pvalues is not None
    assert uniform(alone.pvalues["weight"]) > 0.01
    assert beside.pvalues == alone.pvalues


def test_the_ledger_tells_the_module_class_of_a_plain_mapping(make_ledger: Callable[..., Any]) -> None:
    weights = {"e.weight": np.random.default_rng(0).normal(size=(100, 40))}
    told = score(make_ledger({"e.weight": (100, 40)}, module_class="Embedding"), weights, "init")
    assert told.pvalues is not None
    assert uniform(told.pvalues["e.weight"]) > 0.01
    # Without a ledger a bare matrix passes for a Linear's, far narrower than N(0, 1).
    bare = score(None, weights, "init")
    assert bare.pvalues is not None
    assert np.mean(bare.pvalues["e.weight"] < 0.05) > 0.8


@pytest.mark.parametrize(
    "distribution",
    [
        stats.norm(0, 0.02),
        stats.truncnorm(-2, 2, 0, 0.02),
        stats.expon(0.1, 0.3),
        stats.gamma(2.0),
        stats.logistic(1),
    ],
    ids=["normal", "truncated", "exponential", "gamma", "logistic"],
)
def test_pvalues_are_exact_for_any_continuous_initializer(distribution: Any) -> None:
    weights = {"w": distribution.rvs((120, 50), random_state=np.random.default_rng(5))}
    scores = score(None, weights, "init", initializer=distribution)
    assert scores.pvalues is not None
    assert uniform(scores.pvalues["w"]) > 0.01


def test_an_initializer_may_be_told_by_name() -> None:
    generator = np.random.default_rng(1)
    weights = {
        "a": generator.normal(0, 0.02, (50, 60)),
        "b": generator.uniform(-1, 1, (50, 60)) / np.sqrt(60),
    }
    mapped = score(None, weights, "init", initializer={"a": stats.norm(0, 0.02)})
    called = score(
        None, weights, "init", initializer=lambda name: stats.norm(0, 0.02) if name == "a" else None
    )
    assert mapped == called
    assert mapped.pvalues is not None
    assert uniform(mapped.pvalues["a"]) > 0.01
    assert uniform(mapped.pvalues["b"]) > 0.01
    assert mapped.provenance["options"]["initializer"] == {"a": "norm(0, 0.02)"}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("AdamW", {"weight_decay": 0.5}),
        ("SGD", {"weight_decay": 0.5, "momentum": 0.9}),
    ],
)
def test_the_null_follows_the_recorded_decay(
    kind: str, settings: dict[str, Any], update: Callable[..., Any], make_ledger: Callable[..., Any]
) -> None:
    history = (update(kind, 80, lr=2e-3, betas=[0.9, 0.999], eps=1e-8, **settings),)
    start = np.random.default_rng(2).uniform(-0.1, 0.1, (90, 100))
    weights = {"w": decayed(start, history)}
    ledger = make_ledger({"w": (90, 100)}, history=history)
    followed, ignored = score(ledger, weights, "init"), score(ledger, weights, "init", decay=False)
    assert followed.pvalues is not None
    assert ignored.pvalues is not None
    assert uniform(followed.pvalues["w"]) > 0.01
    assert uniform(ignored.pvalues["w"]) < 1e-6


def test_under_adam_with_l2_pvalues_are_exact_beyond_the_overshoot(
    update: Callable[..., Any], make_ledger: Callable[..., Any]
) -> None:
    history = (update("Adam", 20, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-8),)
    weights = {"w": decayed(np.random.default_rng(2).uniform(-0.1, 0.1, (90, 100)), history)}
    followed = score(make_ledger({"w": (90, 100)}, history=history), weights, "init")
    assert followed.pvalues is not None
    tail = followed.pvalues["w"][followed.pvalues["w"] <= 0.7]
    assert tail.size / 9000 == pytest.approx(0.7, abs=0.02)
    assert uniform(tail / 0.7) > 0.01
    ignored = score(None, weights, "init")
    assert ignored.pvalues is not None
    assert np.mean(ignored.pvalues["w"] <= 0.1) < 0.02


def test_where_adam_overshoots_pvalues_are_never_too_small(
    update: Callable[..., Any], make_ledger: Callable[..., Any]
) -> None:
    # 300 steps of 0.001: everything within 0.1 has long reached zero and swings around it.
    history = (update("Adam", 300, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-8),)
    weights = {"w": decayed(np.random.default_rng(2).uniform(-0.1, 0.1, (90, 100)), history)}
    scores = score(make_ledger({"w": (90, 100)}, history=history), weights, "init")
    assert scores.pvalues is not None
    for alpha in (0.01, 0.05, 0.1):
        assert np.mean(scores.pvalues["w"] <= alpha) <= 1.2 * alpha


def test_a_null_shrunk_to_a_point_rejects_whatever_is_elsewhere(update: Callable[..., Any]) -> None:
    gone = (update("AdamW", 1, lr=1.0, weight_decay=1.0),)
    null = Null.after_decay(stats.uniform(-1, 2), gone, "w")
    np.testing.assert_array_equal(null.pvalue(np.array([0.0, 1e-12, -0.5])), [1.0, 0.0, 0.0])
    assert np.isfinite(null.distance(np.array([1e-12, -0.5]))).all()


def test_without_a_ledger_the_null_stays_as_drawn() -> None:
    weights = {"w": np.random.default_rng(0).uniform(-0.1, 0.1, (30, 100))}
    assert score(None, weights, "init", decay=True) == score(None, weights, "init", decay=False)


def test_an_optimizer_that_cannot_be_replayed_names_the_way_out(
    update: Callable[..., Any], make_ledger: Callable[..., Any]
) -> None:
    ledger = make_ledger({"w": (4, 4)}, history=(update("Lion", 3, lr=0.1, weight_decay=0.1),))
    with pytest.raises(UnsupportedError, match="decay=False"):
        score(ledger, {"w": np.zeros((4, 4))}, "init")
    score(ledger, {"w": np.zeros((4, 4))}, "init", decay=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_never_makes_a_pvalue_of_zero_under_the_null(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # No binary format holds the bound: rounding to nearest pushes some weights past it.
    model = nn.Linear(190, 400).to(dtype)
    scores = score(None, model, "init")
    assert scores.pvalues is not None
    assert scores.pvalues["weight"].min() > 0
    for alpha in (0.01, 0.05):
        assert np.mean(scores.pvalues["weight"] <= alpha) <= 1.2 * alpha


def test_scores_order_like_pvalues_and_beyond_the_bound_by_distance() -> None:
    weights = {"w": np.array([[0.0, 0.2, -0.3, 0.4999, 0.7, -0.9, 5.0, 0.1]]), "pad": np.zeros((1, 4))}
    scores = score(None, weights, "init", initializer=stats.uniform(-0.5, 1))
    assert scores.pvalues is not None
    np.testing.assert_array_equal(np.argsort(scores["w"][0]), np.argsort(np.abs(weights["w"][0])))
    np.testing.assert_allclose(scores.pvalues["w"][0, :3], [1.0, 0.6, 0.4], rtol=1e-12)
    np.testing.assert_array_equal(scores.pvalues["w"][0, 4:7], [0, 0, 0])
    np.testing.assert_allclose(scores["w"][0, :4], -np.log(scores.pvalues["w"][0, :4]))


def test_the_documented_defaults_are_those_of_the_formula() -> None:
    assert default_initializer("w", (8, 25), ("Linear",)).interval(1) == pytest.approx((-0.2, 0.2))  # type: ignore[attr-defined]
    assert default_initializer("w", (8, 4, 3, 3), ("Conv2d",)).interval(1) == pytest.approx((-1 / 6, 1 / 6))  # type: ignore[attr-defined]
    assert default_initializer("w", (8, 25), ("Conv1D",)).std() == pytest.approx(0.02)
    assert default_initializer("w", (8, 0), ()).std() > 0


@pytest.mark.parametrize(
    "bad",
    ["normal", 3, {"w": "normal"}, lambda name: 0.02, stats.cauchy(), stats.poisson(3), stats.norm(0, 0)],
)
def test_what_is_no_distribution_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidValueError, match="distribution"):
        score(None, {"w": np.zeros((2, 2))}, "init", initializer=bad)


def test_an_unfrozen_family_with_parameters_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="Freeze it"):
        score(None, {"w": np.zeros((2, 2))}, "init", initializer=stats.gamma)


def test_an_initializer_for_a_parameter_that_is_not_scored_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'net\.weigth'.*Did you mean 'net\.weight'"):
        score(None, {"net.weight": np.zeros((2, 2))}, "init", initializer={"net.weigth": stats.norm()})


def test_decay_must_be_a_switch() -> None:
    with pytest.raises(InvalidValueError, match="decay: expected True or False, got 'yes'"):
        score(None, {"w": np.zeros((2, 2))}, "init", decay="yes")
