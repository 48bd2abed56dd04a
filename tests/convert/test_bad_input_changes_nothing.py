"""A plan, a plan file or weights that are no good are refused by name; the model is bit for bit as it was."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import gradtrace as gt
from gradtrace.convert.linears import linears
from gradtrace.errors import (
    GradtraceError,
    InvalidValueError,
    MismatchError,
    UnreadableFileError,
    UnsupportedError,
    UnsupportedFormatError,
)
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.row_groups import row_groups


class Mixed(nn.Module):
    """Every kind of layer that can be converted, the last in the plan's order being "head"."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 16)
        self.turned = Conv1D(16, 16)  # type: ignore[no-untyped-call]
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turned(self.first(x))
        y: Tensor = self.head(self.norm(self.attention(x, x, x)[0]))
        return y


def plan_of(model: nn.Module) -> Plan:
    layers = {}
    for name, layer in linears(model).items():
        mask = np.random.default_rng(0).random(layer.shape) < 0.4
        layers[name] = LayerPlan("row groups", row_groups(mask, 4), mask, 1.0, 1.0, None, "")
    return Plan(layers)


def bits(model: nn.Module) -> list[object]:
    """Everything that a refused conversion might have touched."""
    held = [(name, id(module), module.training, dict(vars(module))) for name, module in model.named_modules()]
    values = {
        name: (id(value), value.requires_grad, value.detach().numpy().tobytes())
        for name, value in model.named_parameters()
    }
    kept = [(name, identity, training, sorted(inside)) for name, identity, training, inside in held]
    return [kept, values, torch.get_rng_state().numpy().tobytes()]


def head(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["layers"]["head"]
    return found


def parts(document: dict[str, Any]) -> list[dict[str, list[Any]]]:
    found: list[dict[str, list[Any]]] = head(document)["sub_operators"]
    return found


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (
            lambda d: parts(d)[0]["inputs"].append(16),
            UnreadableFileError,
            "'head': .* indices below 16, got 16",
        ),
        (lambda d: parts(d)[0]["outputs"].append(10**30), UnreadableFileError, "broken at layer 'head'"),
        (lambda d: parts(d)[0]["inputs"].append(-1), UnreadableFileError, "'head': .* at least 0, got -1"),
        (lambda d: parts(d)[0]["inputs"].append(True), UnreadableFileError, "'head': .* a list of integers"),
        (lambda d: parts(d)[0]["inputs"].append(1.0), UnreadableFileError, "'head': .* a list of integers"),
        (
            lambda d: parts(d)[0]["inputs"].append(parts(d)[0]["inputs"][0]),
            UnreadableFileError,
            "'head': .* distinct indices, got . twice",
        ),
        (lambda d: parts(d).append(parts(d)[0]), UnreadableFileError, "'head': .* exactly one .* doubled"),
        (lambda d: parts(d).pop(), UnreadableFileError, "'head': .* exactly one .* lost"),
        (lambda d: parts(d)[0].pop("outputs"), UnreadableFileError, "'head': got sub-operator"),
        (lambda d: head(d).update(sub_operators={}), UnreadableFileError, "'head': .* a list"),
        (lambda d: head(d).update(choice="dense"), UnreadableFileError, "'head': .* no sub-operators"),
        (lambda d: head(d).update(choice="faster"), UnreadableFileError, "'head': got choice: .* Plan again"),
        (lambda d: head(d)["mask"].update(shape=[16, 8]), UnreadableFileError, "broken at layer 'head'"),
        (
            lambda d: head(d)["mask"].update(bits="AA=="),
            UnreadableFileError,
            "'head': got mask: expected 16 bytes",
        ),
        (lambda d: d.update(format="9.0"), UnsupportedFormatError, "unknown format: expected .*, got '9.0'"),
        (lambda d: d["layers"].update(tail=d["layers"].pop("head")), MismatchError, "no linear layer 'tail'"),
        (
            lambda d: d["layers"].update(head=d["layers"]["first"]),
            MismatchError,
            r"'head': expected .* \(16, 12\)",
        ),
        (lambda d: d["layers"].update(norm=d["layers"]["turned"]), UnsupportedError, "'norm' is a LayerNorm"),
        (
            lambda d: d["layers"].update(attention=d["layers"]["turned"]),
            UnsupportedError,
            "'attention' is a MultiheadAttention",
        ),
    ],
)
def test_a_plan_file_that_was_edited_by_hand(
    edit: Edit, error: type[GradtraceError], words: str, tmp_path: Path
) -> None:
    model = Mixed()
    plan_of(model).save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    edit(document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    before = bits(model)
    with pytest.raises(error, match=words):
        gt.convert_(model, Plan.load(tmp_path / "plan.json"), masked=True)
    assert bits(model) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("head.weight", "weight of layer 'head'"),
        ("turned.weight", "weight of layer 'turned'"),
        ("first.bias", "bias of layer 'first'"),
        ("attention.in_proj_weight", r"weight of layer 'attention\.v_proj'"),
        ("attention.out_proj.bias", r"bias of layer 'attention\.out_proj'"),
    ],
)
def test_weights_that_are_not_finite(parameter: str, named: str, value: float) -> None:
    model = Mixed()
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[-1] = value
    before = bits(model)
    with pytest.raises(InvalidValueError, match=f"{named}: expected finite numbers, got 1 "):
        gt.convert_(model, plan_of(model), masked=True)
    assert bits(model) == before


def test_weights_on_the_meta_device() -> None:
    plan = plan_of(Mixed())
    with pytest.raises(UnsupportedError, match="layer 'first' is on the meta device"):
        gt.convert_(Mixed().to("meta"), plan)


class Doubling(nn.Linear):
    """Not what its base class computes."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "other", [Doubling(16, 8), nn.Conv1d(16, 8, 1), nn.Bilinear(16, 16, 8), nn.Embedding(8, 16)]
)
def test_a_module_of_an_unsupported_kind(other: nn.Module) -> None:
    plan = plan_of(Mixed())
    model = Mixed()
    model.add_module("head", copy.deepcopy(other))
    before = bits(model)
    with pytest.raises(UnsupportedError, match=f"'head' is a {type(other).__name__}: .* Leave it out"):
        gt.convert_(model, plan, masked=True)
    assert bits(model) == before


@pytest.mark.parametrize("at", range(7))
def test_running_out_of_memory_at_any_layer(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mixed()
    plan = plan_of(model)
    real, made = gt.RoutedLinear.from_linear, list[gt.RoutedLinear]()

    def fail(linear: nn.Linear, layer_plan: LayerPlan) -> gt.RoutedLinear:
        if len(made) == at:
            raise MemoryError
        made.append(real(linear, layer_plan))
        return made[-1]

    monkeypatch.setattr(gt.RoutedLinear, "from_linear", fail)
    assert len(plan) == 7
    before = bits(model)
    with pytest.raises(MemoryError):
        gt.convert_(model, plan, masked=True)
    assert bits(model) == before


def test_a_way_back_that_fails_leaves_the_converted_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mixed()
    gt.convert_(model, plan_of(model))
    model.head.register_forward_hook(lambda *_: None)
    before = bits(model)
    with pytest.raises(UnsupportedError, match="layer 'head' carries forward hooks"):
        gt.to_dense_(model)
    assert bits(model) == before


def test_neither_way_draws_random_numbers() -> None:
    model = Mixed()
    before = torch.get_rng_state()
    gt.to_dense_(gt.convert_(model, plan_of(model)))
    assert torch.equal(torch.get_rng_state(), before)
