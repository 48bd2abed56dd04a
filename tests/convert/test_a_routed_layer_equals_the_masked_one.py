"""RoutedLinear computes what the dense layer computes with everything zeroed that the mask drops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.structure.components import components
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.row_groups import identical_rows, row_groups
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.trimmed import trimmed

Bools = NDArray[np.bool_]


def random(density: float, shape: tuple[int, int]) -> Bools:
    return np.random.default_rng(0).random(shape) < density


def with_dead(shape: tuple[int, int]) -> Bools:
    mask = random(0.5, shape)
    mask[::3] = False
    mask[:, 1::2] = False
    return mask


def blocks() -> Bools:
    generator = np.random.default_rng(0)
    mask = np.kron(np.eye(5, dtype=np.bool_), np.ones((13, 7), dtype=np.bool_))
    return mask[generator.permutation(65)][:, generator.permutation(35)]


STRUCTURES: dict[str, tuple[str, Bools, Callable[[Bools], tuple[SubOperator, ...]]]] = {
    "trimmed": ("trimmed", with_dead((37, 53)), trimmed),
    "one row": ("trimmed", random(0.4, (1, 53)), trimmed),
    "one column": ("trimmed", random(0.4, (53, 1)), trimmed),
    "nothing kept": ("trimmed", np.zeros((37, 53), dtype=np.bool_), trimmed),
    "everything kept": ("trimmed", np.ones((37, 53), dtype=np.bool_), trimmed),
    "components": ("components", blocks(), components),
    "components of a sparse mask": ("components", random(0.02, (65, 70)), components),
    "ragged row groups": ("row groups", random(0.1, (131, 67)), lambda mask: row_groups(mask, 50)),
    "row groups of 1": ("row groups", with_dead((17, 9)), lambda mask: row_groups(mask, 1)),
    "identical rows": ("row groups", np.repeat(random(0.3, (4, 29)), 11, axis=0), identical_rows),
    "blocks that share outputs": (
        "components",
        np.ones((6, 8), dtype=np.bool_),
        lambda mask: (
            SubOperator(np.array([7, 1, 0]), np.arange(6)[::-1]),
            SubOperator(np.array([2, 3, 4, 5, 6]), np.arange(6)),
        ),
    ),
    "blocks that overlap where the mask drops": (
        "components",
        np.eye(2, dtype=np.bool_),
        lambda mask: (
            SubOperator(np.array([0, 1]), np.array([0])),
            SubOperator(np.array([1]), np.array([0, 1])),
        ),
    ),
}
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def layer_plan(structure: str) -> LayerPlan:
    choice, mask, method = STRUCTURES[structure]
    return LayerPlan(choice, method(mask), mask, 1.0, 1.0, None, "")


def both(
    structure: str, *, bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[nn.Linear, RoutedLinear]:
    """The masked dense layer and the routed one, with weights of their own."""
    torch.manual_seed(0)
    planned = layer_plan(structure)
    rows, columns = planned.mask.shape
    linear = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    routed = copy.deepcopy(RoutedLinear.from_linear(linear, planned))
    with torch.no_grad():
        linear.weight.masked_fill_(torch.from_numpy(~planned.mask), 0)
    return linear, routed


def assert_close(got: Tensor, expected: Tensor, relative: float) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    largest = (got.double() - expected.double()).abs().max().item()
    assert largest <= relative * expected.double().abs().max().item()


@every_structure
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float64, 1e-13)]
)
def test_outputs_are_equal(structure: str, bias: bool, dtype: torch.dtype, relative: float) -> None:
    linear, routed = both(structure, bias=bias, dtype=dtype)
    x = torch.randn(33, linear.in_features, dtype=dtype)
    assert_close(routed(x), linear(x), relative)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 3), (4, 1, 5)])
def test_any_leading_shape_is_kept(shape: tuple[int, ...]) -> None:
    linear, routed = both("ragged row groups")
    x = torch.randn(*shape, linear.in_features, dtype=torch.float64)
    torch.testing.assert_close(routed(x), linear(x))


@every_structure
def test_gradients_are_those_of_the_masked_dense_layer(structure: str) -> None:
    linear, routed = both(structure)
    x = torch.randn(9, linear.in_features, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    seed = torch.randn(9, linear.out_features, dtype=torch.float64)
    (routed(ours) * seed).sum().backward()
    (linear(theirs) * seed).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert routed.bias is not None
    torch.testing.assert_close(routed.bias.grad, linear.bias.grad)
    assert routed.weight.grad is not None
    assert linear.weight.grad is not None
    for block, part in zip(routed.blocks(routed.weight.grad), routed.sub_operators, strict=True):
        expected = linear.weight.grad.numpy()[np.ix_(part.outputs, part.inputs)]
        np.testing.assert_allclose(block.numpy(), expected, rtol=1e-10, atol=1e-12)


@every_structure
def test_to_dense_is_the_masked_weight_and_carries_gradients(structure: str) -> None:
    linear, routed = both(structure)
    dense = routed.to_dense()
    torch.testing.assert_close(dense, linear.weight, rtol=0, atol=0)
    if routed.weight.numel():
        (gradient,) = torch.autograd.grad(dense.sum(), routed.weight)
        assert torch.equal(gradient, torch.ones_like(routed.weight))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(64, 48), (130, 31), (1, 20), (300, 5)])
def test_a_model_planned_without_refusal_equals_the_masked_one(
    device: SimpleNamespace, density: float, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    rows, columns = shape
    model = nn.Sequential(nn.Linear(columns, rows), nn.ReLU(), nn.Linear(rows, 11))
    mask = gt.Mask({"0.weight": random(density, shape), "2.weight": random(density, (11, rows))})
    device.speed = 0.5
    plan = gt.plan(model, mask, refuse=False)
    assert plan.converted == ("0", "2")
    x = torch.randn(7, columns)
    expected = gt.apply_mask_(copy.deepcopy(model), mask)(x)
    assert_close(gt.convert_(model, plan)(x), expected, 1e-5)


def test_a_copy_is_equal_and_its_own() -> None:
    _, routed = both("components")
    x = torch.randn(3, routed.in_features, dtype=torch.float64)
    before = routed(x)
    copied = copy.deepcopy(routed)
    assert torch.equal(copied(x), before)
    with torch.no_grad():
        copied.weight.zero_()
    assert torch.equal(routed(x), before)


def test_to_moves_numbers_and_leaves_indices() -> None:
    linear, routed = both("ragged row groups")
    routed.to("cpu", torch.float32)
    assert {routed.weight.dtype, routed.inputs.dtype, routed.outputs.dtype} == {torch.float32, torch.int64}
    x = torch.randn(3, routed.in_features)
    assert_close(routed(x), linear.float()(x), 1e-5)
    assert routed.to("meta").inputs.is_meta


def test_the_state_dict_is_plain_tensors_and_loads_back() -> None:
    _, routed = both("components")
    state = routed.state_dict()
    assert set(state) == {"weight", "bias", "inputs", "outputs"}
    fresh = RoutedLinear(routed.in_features, routed.out_features, routed.sub_operators, dtype=torch.float64)
    x = torch.randn(3, routed.in_features, dtype=torch.float64)
    assert not torch.equal(fresh(x), routed(x))
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), routed(x))


def test_weights_of_another_structure_are_refused_and_nothing_is_loaded() -> None:
    _, routed = both("components")
    state = routed.state_dict()
    state["inputs"] = state["inputs"].flip(0)
    before = routed.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inputs is of another structure"):
        routed.load_state_dict({**state, "weight": state["weight"] * 2})
    assert torch.equal(routed.weight, before)


def test_an_input_of_another_width_is_refused() -> None:
    _, routed = both("trimmed")
    with pytest.raises(MismatchError, match=r"expected \(..., 53\), got \(2, 60\)"):
        routed(torch.randn(2, 60, dtype=torch.float64))


def test_requires_grad_mode_and_bias_are_kept() -> None:
    linear = nn.Linear(53, 37).eval()
    linear.weight.requires_grad_(False)
    routed = RoutedLinear.from_linear(linear, layer_plan("trimmed"))
    assert not routed.weight.requires_grad
    assert not routed.training
    assert routed.bias is linear.bias


def test_printing_shows_what_the_layer_runs() -> None:
    _, routed = both("components", bias=False)
    assert repr(routed) == (
        "RoutedLinear(in_features=35, out_features=65, bias=False, sub_operators=5, weights=455)"
    )


def test_a_dense_plan_and_another_shape_are_refused() -> None:
    dense = LayerPlan("dense", (), np.ones((2, 3), dtype=np.bool_), 1.0, 1.0, None, "too small")
    with pytest.raises(InvalidValueError, match="too small"):
        RoutedLinear.from_linear(nn.Linear(3, 2), dense)
    with pytest.raises(MismatchError, match=r"\(37, 53\), got \(2, 3\)"):
        RoutedLinear.from_linear(nn.Linear(3, 2), layer_plan("trimmed"))
    with pytest.raises(
        InvalidValueError, match="inputs of the sub-operators: expected indices below 3, got 5"
    ):
        RoutedLinear(3, 2, (SubOperator(np.array([5]), np.array([0])),))


def test_the_layer_compiles_into_one_graph() -> None:
    linear, routed = both("components", dtype=torch.float32)
    compiled = torch.compile(routed, fullgraph=True, backend="eager")
    x = torch.randn(5, linear.in_features)
    assert_close(compiled(x), linear(x), 1e-5)


def test_a_plan_read_back_converts_the_same(tmp_path: object) -> None:
    linear = nn.Linear(35, 65)
    model = nn.Sequential(linear)
    Plan({"0": layer_plan("components")}).save(f"{tmp_path}/plan.json")
    expected = gt.convert_(copy.deepcopy(model), Plan({"0": layer_plan("components")}))
    got = gt.convert_(model, gt.Plan.load(f"{tmp_path}/plan.json"))
    x = torch.randn(4, 35)
    assert torch.equal(got(x), expected(x))
