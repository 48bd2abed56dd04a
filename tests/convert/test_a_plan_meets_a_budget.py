"""gt.plan finds the density that a time or a loss allows; the oracle tries every density there is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.convert import planning
from gradtrace.errors import InvalidValueError

Scores = dict[str, np.ndarray]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 24), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16))


def scores_of(model: nn.Module) -> Scores:
    """Of every weight, in bands of inputs: a row group at density d has about d of the inputs."""
    draw = np.random.default_rng(0)
    return {
        name: draw.random(parameter.shape[1]) + 1e-3 * draw.random(tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
    }


def masks(scores: Scores, density: float) -> gt.Mask:
    return gt.select({"1.weight": scores["1.weight"], "3.weight": scores["3.weight"]}, density=density,
                     granularity="rows")  # fmt: skip


def weights_dropped(model: nn.Module) -> float:
    """A loss without noise: the number of weights that are zero."""
    return float(
        sum(int((module.weight == 0).sum()) for module in model.modules() if type(module) is nn.Linear)
    )


def test_a_density_keeps_what_select_keeps_of_the_linear_layers(device: SimpleNamespace) -> None:
    model = mlp()
    scores = scores_of(model)
    plan = gt.plan(model, scores, density=0.3)
    assert plan.provenance["budget"] == {"density": 0.3}
    assert plan.provenance["not linear"] == []
    for name, mask in masks(scores, 0.3).items():
        np.testing.assert_array_equal(plan[name.removesuffix(".weight")].mask, mask)


def measuring(device: SimpleNamespace, times: float) -> Callable[..., tuple[float, float]]:
    """Sub-operators take `times` what the table says."""

    def measure(linear: nn.Linear, routed: gt.RoutedLinear, tokens: int) -> tuple[float, float]:
        shape = linear.in_features, linear.out_features
        seconds = device.table.predict_sub_operators(routed.sub_operators, *shape)
        return device.table.predict_dense(*shape), times * seconds

    return measure


def taken(plan: gt.Plan) -> float:
    return sum(layer.dense / (layer.measured or 1.0) for layer in plan.values())


@pytest.mark.parametrize("times", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_largest_density_within_a_latency_is_found(
    device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, share: float, times: float
) -> None:
    """Even where measurements say that predictions are wrong by a factor."""
    model = mlp()
    scores = scores_of(model)
    monkeypatch.setattr(planning, "measure_beside", measuring(device, times))
    latency = share * 1e-9 * (24 * 40 + 40 * 16)
    plan = gt.plan(model, scores, max_latency=latency)
    budget = plan.provenance["budget"]
    assert budget["seconds"] == pytest.approx(taken(plan))
    assert budget["seconds"] <= latency
    larger = range(round(budget["density"] * 256) + 1, 257)
    plans = (planning._planned(model, masks(scores, step / 256), 512, True) for step in larger)
    assert budget["seconds"] >= 0.95 * latency or not any(taken(plan) <= latency for plan in plans)


def test_time_enough_for_dense_layers_keeps_all(device: SimpleNamespace) -> None:
    model = mlp()
    plan = gt.plan(model, scores_of(model), max_latency=1.0)
    assert (plan.converted, plan.provenance["budget"]["density"]) == ((), 1.0)


def test_a_time_that_nothing_meets_is_refused_with_one_that_may_be_met(device: SimpleNamespace) -> None:
    model = mlp()
    with pytest.raises(InvalidValueError, match=r"max_latency: expected at least \d.*e-.*, got 1e-12"):
        gt.plan(model, scores_of(model), max_latency=1e-12)
    device.speed = 0.5  # nothing measures faster than dense, so all stays dense
    with pytest.raises(InvalidValueError, match=r"max_latency: expected at least 1\.6e-06, .* got 8e-07"):
        gt.plan(model, scores_of(model), max_latency=8e-7)


@pytest.mark.parametrize("increase", [0.0, 100.0, 700.0, 1600.0])
def test_the_smallest_density_within_a_loss_is_found(device: SimpleNamespace, increase: float) -> None:
    model = mlp()
    scores = scores_of(model)

    def loss(density: float) -> float:
        return weights_dropped(gt.apply_mask_(mlp(), masks(scores, density)))

    plan = gt.plan(model, scores, max_loss_increase=increase, validate=weights_dropped)
    told = plan.provenance["budget"]
    fitting = [step for step in range(1, 257) if loss(step / 256) <= increase]
    assert told["density"] == min(fitting) / 256
    assert (told["loss"], told["increase"]) == (0.0, loss(told["density"]))
    converted = gt.convert_(mlp(), plan, masked=True)
    x = torch.arange(10)
    torch.testing.assert_close(converted(x), gt.apply_mask_(mlp(), masks(scores, told["density"]))(x))


def test_a_loss_that_is_no_number_fits_no_budget(device: SimpleNamespace) -> None:
    model = mlp()

    def validate(net: nn.Module) -> float:
        assert not net.training
        return float("nan") if weights_dropped(net) else 1.0

    plan = gt.plan(model, scores_of(model), max_loss_increase=9.0, validate=validate, granularity="element")
    assert plan.provenance["budget"]["density"] == 1.0
    assert model.training


def flat(model: nn.Module) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 0.3, "max_latency": 1.0}, "expected one of them, got density and max_latency"),
        ({"density": 0.0}, "density: expected"),
        ({"max_latency": 0.0}, "max_latency: expected seconds above 0"),
        ({"max_latency": float("nan")}, "max_latency: expected seconds above 0"),
        ({"max_latency": True}, "max_latency: expected seconds above 0"),
        ({"max_loss_increase": -1.0, "validate": flat}, "max_loss_increase: expected a finite number"),
        ({"max_loss_increase": 0.1}, "validate: expected a function from model to loss"),
        ({"max_loss_increase": 0.1, "validate": 3}, "validate: expected a function from model to loss"),
        ({"density": 0.3, "validate": flat}, "validate: expected .* together with max_loss_increase"),
        ({"max_loss_increase": 0.1, "validate": lambda model: "low"}, "validate: expected a number"),
        ({"max_loss_increase": 0.1, "validate": lambda model: float("inf")}, "finite loss of the dense"),
        ({"density": 0.3, "granularity": "atom"}, "granularity: expected one of"),
        ({"density": 0.3, "scope": "galaxy"}, "scope: expected one of"),
    ],
)
def test_what_is_no_budget_is_refused(options: dict[str, Any], words: str) -> None:
    model = mlp()
    with pytest.raises(InvalidValueError, match=words):
        gt.plan(model, scores_of(model), **options)


def test_a_budget_wants_scores_of_linear_layers(masks_of: Callable[..., Any]) -> None:
    model = mlp()
    with pytest.raises(InvalidValueError, match=r"expected scores.* got a mask"):
        gt.plan(model, masks_of(model), density=0.3)
    with pytest.raises(InvalidValueError, match=r"expected scores.* got float"):
        gt.plan(model, 0.3, density=0.3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="scores: expected those of a linear layer"):
        gt.plan(model, {"0.weight": np.ones((10, 24))}, density=0.3)
