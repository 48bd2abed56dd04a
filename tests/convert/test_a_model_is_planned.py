"""gt.plan decides layer by layer, with numbers from outside, and checks that the mask is for this model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, MismatchError, UnsupportedError

Masks = dict[str, NDArray[np.bool_]]
MasksOf = Callable[..., Masks]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16))


def test_a_layer_measured_faster_is_converted(device: SimpleNamespace, masks_of: MasksOf) -> None:
    model = mlp()
    plan = gt.plan(model, masks_of(model))
    assert plan.converted == ("0", "2")
    assert [layer.measured for layer in plan.values()] == [2.0, 2.0]


def test_a_layer_measured_slower_stays_dense(device: SimpleNamespace, masks_of: MasksOf) -> None:
    model = mlp()
    device.speed = 0.5
    plan = gt.plan(model, masks_of(model))
    assert plan.converted == ()
    assert "measured 0.50x dense" in plan["0"].reason


def test_planning_changes_no_weight(device: SimpleNamespace, masks_of: MasksOf) -> None:
    model = mlp()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gt.plan(model, masks_of(model), refuse=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_layer_without_a_mask_stays_dense_and_is_listed(device: SimpleNamespace, masks_of: MasksOf) -> None:
    model = mlp()
    masks = masks_of(model)
    del masks["2.weight"]
    plan = gt.plan(model, masks, refuse=False)
    assert list(plan) == ["0", "2"]
    assert plan["2"].choice == "dense"
    assert plan["2"].reason == "stays dense: the mask has no entry for it"
    assert plan["2"].mask.all()
    assert plan["2"].dense == pytest.approx(40 * 16 * 1e-9)


def test_masks_of_other_parameters_are_named_and_left_alone(device: SimpleNamespace) -> None:
    model = nn.Sequential(nn.Embedding(10, 24), nn.Linear(24, 40))
    masks = {"0.weight": np.zeros((10, 24), np.bool_), "1.weight": np.zeros((40, 24), np.bool_)}
    plan = gt.plan(model, masks)
    assert list(plan) == ["1"]
    assert plan.provenance["not linear"] == ["0.weight"]


def test_costs_are_asked_for_each_device_and_dtype_there_is(
    device: SimpleNamespace, masks_of: MasksOf
) -> None:
    model = mlp()
    model[2].double()
    gt.plan(model, masks_of(model), tokens=64)
    cpu = torch.device("cpu")
    assert device.asked == [(cpu, torch.float32, 64), (cpu, torch.float64, 64)]


def test_the_plan_says_where_it_came_from_and_survives_the_disk(
    device: SimpleNamespace, masks_of: MasksOf, tmp_path: Path
) -> None:
    model = mlp()
    mask = gt.Mask(masks_of(model), provenance={"criterion": "magnitude"})
    plan = gt.plan(model, mask, tokens=64)
    plan.save(tmp_path / "plan.json")
    assert gt.Plan.load(tmp_path / "plan.json").provenance == plan.provenance
    assert plan.provenance["mask"] == {"criterion": "magnitude"}
    assert (plan.provenance["tokens"], plan.provenance["device"], plan.provenance["dtype"]) == (
        64,
        "cpu",
        "float32",
    )
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == "1.1"


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, "512"])
def test_tokens_that_are_no_count_are_refused(tokens: int, masks_of: MasksOf) -> None:
    model = mlp()
    with pytest.raises(InvalidValueError, match="tokens: expected an integer of at least 1"):
        gt.plan(model, masks_of(model), tokens=tokens)


def test_a_mask_of_another_model_is_refused_with_the_nearest_name(masks_of: MasksOf) -> None:
    model = mlp()
    masks = masks_of(model)
    with pytest.raises(MismatchError, match=r"names '22.weight'.*nearest name is '2.weight'"):
        gt.plan(model, {"22.weight": masks["2.weight"]})
    with pytest.raises(
        MismatchError, match=r"'2.weight' has another shape .* expected \(16, 40\), got \(40, 24\)"
    ):
        gt.plan(model, {"2.weight": masks["0.weight"]})


def test_a_model_without_data_is_refused(masks_of: MasksOf) -> None:
    model = mlp().to("meta")
    with pytest.raises(UnsupportedError, match="layer '0' is on the meta device"):
        gt.plan(model, masks_of(model))


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="mask: expected a mapping"):
        gt.plan(mlp(), 0.3)  # type: ignore[arg-type]
