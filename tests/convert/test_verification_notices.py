"""verify passes what is equal, and names what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, MismatchError, NotEquivalentError
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.trimmed import trimmed


class Net(nn.Module):
    """Two linear layers, dropout, batch norm and an output whose shape is chosen by `wrap`."""

    def __init__(self, wrap: Callable[[Tensor], object] = lambda y: y) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40)
        self.norm = nn.BatchNorm1d(40)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(40, 16)
        self.wrap = wrap

    def forward(self, x: Tensor, scale: float = 1.0) -> object:
        return self.wrap(self.second(self.drop(self.norm(self.first(x).relu()))) * scale)


@dataclass
class Output:
    logits: Tensor
    labels: Tensor
    hidden: tuple[Tensor, ...] | None = None


def pair(
    wrap: Callable[[Tensor], object] = lambda y: y, dtype: torch.dtype = torch.float32
) -> tuple[Net, Net, Net]:
    """(the original, the masked dense model, the converted one)."""
    torch.manual_seed(0)
    model = Net(wrap).to(dtype)
    masks = {"first": np.random.default_rng(0).random((40, 24)) < 0.4}
    masks["second"] = np.random.default_rng(1).random((16, 40)) < 0.4
    plan = Plan(
        {
            name: LayerPlan("row groups", row_groups(mask, 6), mask, 1.0, 1.0, None, "")
            for name, mask in masks.items()
        }
    )
    reference = gt.apply_mask_(copy.deepcopy(model), plan)
    return model, reference, gt.convert_(copy.deepcopy(model), plan)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_an_equal_model_passes_within_the_tolerance_of_its_dtype(
    dtype: torch.dtype, tolerance: float
) -> None:
    _, reference, converted = pair(dtype=dtype)
    report = gt.verify(reference, converted, torch.randn(32, 24, dtype=dtype))
    assert set(report.layers) == {"first", "second"}
    for difference in (report.output, *report.layers.values()):
        assert difference.tolerance == tolerance
        assert difference.relative <= tolerance
        assert difference.within


@pytest.mark.parametrize(
    ("batch", "scale"),
    [
        (torch.ones(4, 24), 1.0),
        ((torch.ones(4, 24), 2.0), 2.0),
        ([torch.ones(4, 24)], 1.0),
        ({"x": torch.ones(4, 24), "scale": 3.0}, 3.0),
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_a_batch_may_be_a_tensor_a_tuple_or_a_dict(batch: object, scale: float) -> None:
    seen: list[Tensor] = []

    def wrap(y: Tensor) -> Tensor:
        seen.append(y)
        return y

    _, reference, converted = pair(wrap)
    gt.verify(reference, converted, batch)
    with torch.no_grad():
        expected = reference.eval()(torch.ones(4, 24), scale)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, y * 2),
        lambda y: {"logits": y, "classes": y.argmax(1), "loss": y.mean()},
        lambda y: [{"deep": (y,)}],
        lambda y: Output(y, y.argmax(1), (y, y)),
    ],
    ids=["tuple", "dict", "nested", "dataclass"],
)
def test_outputs_of_any_shape_are_compared(wrap: Callable[[Tensor], object]) -> None:
    _, reference, converted = pair(wrap)
    assert gt.verify(reference, converted, torch.randn(4, 24)).output.absolute > 0


def test_a_difference_deep_in_an_output_is_noticed() -> None:
    _, reference, converted = pair(lambda y: {"same": torch.ones(3), "deep": [y]})
    with torch.no_grad():
        reference.norm.bias.add_(1)
    with pytest.raises(NotEquivalentError, match="the output of the converted model differs"):
        gt.verify(reference, converted, torch.randn(4, 24))


def test_only_the_layer_that_is_wrong_is_named() -> None:
    _, reference, converted = pair()
    with torch.no_grad():
        converted.first.weight[3] += 0.5
    with pytest.raises(NotEquivalentError, match=r"^layer 'first' of the converted model differs"):
        gt.verify(reference, converted, torch.randn(32, 24))


def test_a_lost_sub_operator_is_noticed() -> None:
    _, reference, converted = pair()
    assert isinstance(converted.second, gt.RoutedLinear)
    with torch.no_grad():
        converted.second.blocks(converted.second.weight)[1].zero_()
    with pytest.raises(NotEquivalentError, match="layer 'second'"):
        gt.verify(reference, converted, torch.randn(32, 24))


def test_the_unmasked_original_is_no_reference_and_the_remedy_says_so() -> None:
    original, _, converted = pair()
    with pytest.raises(NotEquivalentError, match="apply_mask_"):
        gt.verify(original, converted, torch.randn(32, 24))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_never_pass(value: float) -> None:
    _, reference, converted = pair()
    x = torch.randn(4, 24)
    x[0, 0] = value
    with pytest.raises(NotEquivalentError):
        gt.verify(reference, converted, x)


def test_a_layer_used_twice_is_judged_by_its_worse_call() -> None:
    class Twice(Net):
        def forward(self, x: Tensor, scale: float = 1.0) -> object:
            self.first(x)
            return self.first(torch.zeros_like(x))

    torch.manual_seed(0)
    mask = np.ones((40, 24), dtype=np.bool_)
    plan = Plan({"first": LayerPlan("row groups", row_groups(mask, 8), mask, 1.0, 1.0, None, "")})
    reference, converted = Twice(), Twice()
    converted.load_state_dict(reference.state_dict())
    gt.convert_(converted, plan)
    with torch.no_grad():
        converted.first.weight += 1  # shows in the first call only: the second sees zeros
    with pytest.raises(NotEquivalentError, match="layer 'first'"):
        gt.verify(reference, converted, torch.randn(4, 24))


def test_modes_statistics_and_gradients_are_left_as_they_were() -> None:
    _, reference, converted = pair()
    reference.drop.eval()
    converted.train()
    before = [[module.training for module in model.modules()] for model in (reference, converted)]
    state = {name: value.clone() for name, value in converted.state_dict().items()}
    gt.verify(reference, converted, torch.randn(4, 24))
    assert [[module.training for module in model.modules()] for model in (reference, converted)] == before
    assert all(torch.equal(value, state[name]) for name, value in converted.state_dict().items())
    assert all(parameter.grad is None for parameter in converted.parameters())
    assert not converted.first._forward_hooks


def test_modes_and_hooks_are_restored_after_an_error() -> None:
    _, reference, converted = pair()
    converted.train()
    with pytest.raises(RuntimeError):
        gt.verify(reference, converted, torch.randn(4, 25))
    assert converted.training
    assert not converted.first._forward_hooks


def test_a_compiled_model_is_verified() -> None:
    _, reference, converted = pair()
    compiled = torch.compile(converted, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert set(gt.verify(reference, compiled, torch.randn(4, 24)).layers) == {"first", "second"}


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(input=x)
        return result


def test_a_layer_that_is_called_by_keyword_is_converted_and_verified() -> None:
    model, mask = ByName(), np.random.default_rng(0).random((8, 24)) < 0.4
    plan = Plan({"layer": LayerPlan("row groups", row_groups(mask, 3), mask, 1.0, 1.0, None, "")})
    reference = gt.apply_mask_(copy.deepcopy(model), plan)
    assert gt.verify(reference, gt.convert_(model, plan), torch.randn(4, 24)).layers["layer"].within


def test_a_converted_layer_alone_is_verified() -> None:
    _, reference, converted = pair()
    assert gt.verify(reference.first, converted.first, torch.randn(4, 24)).output.within


def test_models_that_do_not_belong_together_are_refused() -> None:
    _, reference, converted = pair()
    with pytest.raises(MismatchError, match="no layer 'first'"):
        gt.verify(nn.Linear(24, 16), converted, torch.randn(4, 24))
    with pytest.raises(MismatchError, match="different outputs"):
        gt.verify(nn.Linear(24, 3), nn.Linear(24, 4), torch.randn(4, 24))
    with pytest.raises(InvalidValueError, match="batch: expected a tensor"):
        gt.verify(reference, converted, 3)
    integers = Net(lambda y: y.argmax(1))
    with pytest.raises(InvalidValueError, match="at least one floating-point tensor"):
        gt.verify(integers, integers, torch.randn(4, 24))


def test_what_mask_and_compensation_change_is_told_layer_by_layer() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 8)).double()
    x = torch.randn(200, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    rng = np.random.default_rng(0)
    layers = {}
    for name, shape in (("0", (20, 12)), ("2", (8, 20))):
        mask = np.repeat(rng.random((1, shape[1])) < 0.5, shape[0], axis=0)
        layers[name] = LayerPlan("trimmed", trimmed(mask), mask, 1.0, 1.0, None, "")
    plan = Plan(layers)
    found = gt.compensation(dense, plan, [x])
    told = {}
    for kind, masked in (
        ("alone", gt.apply_mask_(copy.deepcopy(dense), plan)),
        ("compensated", found.apply_(copy.deepcopy(dense))),
    ):
        converted = gt.convert_(copy.deepcopy(masked), plan)
        assert gt.verify(masked, converted, x).lost == {}
        told[kind] = gt.verify(masked, converted, x, original=dense).lost
    for name, layer in found.items():
        assert told["alone"][name] == pytest.approx(layer.before, rel=1e-9)
        assert told["compensated"][name] == pytest.approx(layer.after, rel=1e-9)
    with pytest.raises(MismatchError, match="the original has no layer '2'"):
        gt.verify(masked, converted, x, original=dense[:2])


def test_the_change_of_quality_against_the_original_is_told() -> None:
    original, reference, converted = pair()
    original.train()
    x = torch.randn(32, 24)
    asked: list[bool] = []

    def validate(model: nn.Module) -> float:
        asked.append(model.training)
        y: Tensor = model(x)
        return y.square().mean().item()

    report = gt.verify(reference, converted, x, original=original, validate=validate)
    assert asked == [False, False, False]
    assert original.training
    assert list(report.quality) == ["original", "reference", "converted"]
    assert report.quality["converted"] == pytest.approx(report.quality["reference"], rel=1e-4)
    assert report.quality_change == report.quality["converted"] - report.quality["original"]
    assert abs(report.quality_change) > 1e-3
    alone = gt.verify(reference, converted, x, validate=validate)
    assert list(alone.quality) == ["reference", "converted"]
    assert alone.quality_change is None
    assert gt.verify(reference, converted, x).quality == {}


@pytest.mark.parametrize("said", [None, "good", float("nan"), float("inf")])
def test_a_quality_that_is_no_finite_number_is_refused(said: object) -> None:
    _, reference, converted = pair()
    with pytest.raises(InvalidValueError, match="validate: expected"):
        gt.verify(reference, converted, torch.randn(4, 24), validate=lambda _: said)  # type: ignore[arg-type,return-value]
