"""Permuting hidden units changes nothing that a model computes, and makes sub-operators index-free."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from whole_models import FAMILIES, build, outputs_of

import gradtrace as gt
from gradtrace.convert.folding import Folding
from gradtrace.convert.hidden_space import HiddenSpace
from gradtrace.convert.hidden_spaces import hidden_spaces
from gradtrace.convert.linears import linears
from gradtrace.errors import MismatchError
from gradtrace.structure.components import components
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.unit_order import consecutive

K, WIDTH, HIDDEN = 4, 8, 24
Spaces = list[HiddenSpace]


def free_spaces(model: nn.Module) -> Spaces:
    return [space for space in hidden_spaces(model, linears(model)) if not space.why_not]


def random_order(space: HiddenSpace, seed: int) -> NDArray[np.int64]:
    """Any order that keeps neighbours together and everybody in the own block."""
    generator = np.random.default_rng(seed)
    units = np.arange(space.size).reshape(space.blocks, -1, space.unit)
    return np.concatenate([generator.permutation(block).reshape(-1) for block in units])


EXPECTED = {"minilm": 6 * 3, "gpt2": 2 * 3, "llama": 2, "encoder": 2 * 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_order_of_what_is_free_leaves_the_function_as_it_was(family: str) -> None:
    model = build(family).double()
    found = free_spaces(model)
    assert len(found) == EXPECTED[family]
    folded = tuple((space, random_order(space, seed)) for seed, space in enumerate(found))
    with torch.no_grad():
        for parameter in model.parameters():  # biases are made as zeros, whose order nobody sees
            parameter.add_(0.02 * torch.randn_like(parameter))
        before = outputs_of(model, family)
        weights = {name: value.clone() for name, value in model.named_parameters()}
        Folding(Plan({}), folded).apply_(model)
        after = outputs_of(model, family)
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, weights[name])]
    assert len(changed) >= 2 * len(found)
    assert (after - before).abs().max() <= 1e-12 * before.abs().max()


class Plain(nn.Module):
    """An MLP whose hidden units something may be done to."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module = functional.gelu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.between = between
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.between(self.up(x)))


class Gated(nn.Module):
    """SwiGLU: two layers write the hidden units together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.drop(functional.silu(self.gate(x)) * self.up(x)))
        return y


def planted(model: nn.Module) -> Plan:
    """K blocks over the layers of an MLP, whose hidden units lie shuffled; inputs and outputs in order."""
    of_hidden = np.random.default_rng(0).permutation(np.arange(HIDDEN) % K)
    of_width = np.arange(WIDTH) * K // WIDTH
    layers = {}
    for name, layer in linears(model).items():
        rows, columns = (of_width, of_hidden) if layer.shape[1] == HIDDEN else (of_hidden, of_width)
        mask = rows[:, None] == columns[None, :]
        layers[name] = LayerPlan("components", components(mask), mask, 1.0, 1.0, None, "exact blocks")
    return Plan(layers)


NORM = nn.LayerNorm(HIDDEN)
nn.init.normal_(NORM.weight)
nn.init.normal_(NORM.bias)


@pytest.mark.parametrize(
    "make",
    [
        Plain,
        Gated,
        lambda: Plain(nn.Sequential(nn.ReLU(), nn.Dropout(0.5))),
        lambda: Plain(copy.deepcopy(NORM)),
        lambda: Plain(nn.RMSNorm(HIDDEN)),
        lambda: Plain(lambda h: h * torch.sigmoid(1.702 * h)),
        lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDTH)),
    ],
    ids=["gelu", "gated", "dropout", "layer norm", "rms norm", "by hand", "sequential"],
)
def test_planted_blocks_become_slices(make: Callable[[], nn.Module]) -> None:
    model = make().double().eval()
    plan = planted(model)
    assert not all(consecutive(p.outputs) for layer in plan.values() for p in layer.sub_operators)
    found = gt.folding(model, plan)
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        masked = gt.apply_mask_(copy.deepcopy(model), plan)(x)
        assert found.apply_(model) is model
        assert (model(x) - before).abs().max() <= 1e-12 * before.abs().max()
        reference = gt.apply_mask_(copy.deepcopy(model), found.plan)
        assert (reference(x) - masked).abs().max() <= 1e-12 * masked.abs().max()
        gt.convert_(model, found.plan)
        assert (model(x) - masked).abs().max() <= 1e-12 * masked.abs().max()
    for layer in found.plan.values():
        assert layer.reason == "exact blocks"
        for part in layer.sub_operators:
            assert consecutive(part.inputs)
            assert consecutive(part.outputs)


class Leaking(Plain):
    """Gives its hidden units away."""

    def forward(self, x: Tensor) -> Any:
        hidden = self.up(x).relu()
        return self.down(hidden), hidden


class Twice(Plain):
    """Runs a layer twice."""

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x).relu()) + self.down(self.up(-x).tanh())


class Branching(Plain):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x)) if x.sum() > 0 else x


class EvalOnly(Plain):
    """Does something else in eval mode."""

    def forward(self, x: Tensor) -> Any:
        hidden = self.up(x).relu()
        return self.down(hidden if self.training else hidden.cumsum(-1))


def shared_bias() -> nn.Module:
    model = Plain()
    model.other = nn.Linear(WIDTH, HIDDEN)
    model.other.bias = model.up.bias
    return model


def hooked() -> nn.Module:
    model = Plain()
    model.up.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Leaking, "what calls the module sees them too"),
        (Twice, "is called twice"),
        (Branching, "they are no hidden units that could be found"),
        (EvalOnly, "they are no hidden units that could be found"),
        (shared_bias, "'up' has a part in several places"),
        (hooked, "hooks of 'up' see them too"),
        (lambda: Plain(lambda h: h.softmax(-1)), "softmax sees them too"),
        (lambda: Plain(lambda h: h + torch.arange(HIDDEN)), "add sees them too"),
        (lambda: Plain(lambda h: h.flip(-1)), "flip sees them too"),
        (lambda: Plain(lambda h: h * h.mean(-1, keepdim=True)), "mean sees them too"),
        (lambda: Plain(nn.Softmax(-1)), "Softmax sees them too"),
    ],
)
def test_what_something_else_sees_keeps_its_order_and_the_plan_says_why(
    make: Callable[[], nn.Module], words: str
) -> None:
    model = make()
    plan = Plan({name: layer for name, layer in planted(model).items() if name != "other"})
    held = [sorted(vars(module)) for module in model.modules()]
    found = gt.folding(model, plan)
    assert [sorted(vars(module)) for module in model.modules()] == held
    assert found.folded == ()
    said = found.plan["down"].reason
    assert said.startswith("exact blocks; inputs by index: ")
    assert words in said


def test_row_groups_that_overlap_keep_their_index_and_say_so() -> None:
    model = Plain()
    mask = np.random.default_rng(0).random((WIDTH, HIDDEN)) < 0.5
    plan = Plan({"down": LayerPlan("row groups", row_groups(mask, 2), mask, 1.0, 1.0, None, "")})
    assert gt.folding(model, plan).plan["down"].reason == (
        "inputs by index: no order of the hidden units makes them neighbours"
    )


def test_a_folding_for_another_model_changes_nothing() -> None:
    found = gt.folding(Gated(), planted(Gated()))
    other = Plain()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(MismatchError, match="the folding is for another model"):
        found.apply_(other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_it_fits_a_copy_and_leaves_the_original_as_it_was() -> None:
    model = Plain(copy.deepcopy(NORM))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gt.folding(model, planted(model))
    x = torch.randn(3, WIDTH)
    copied = found.apply_(copy.deepcopy(model))
    torch.testing.assert_close(copied(x), model(x))
    assert not torch.equal(copied.up.weight, model.up.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
