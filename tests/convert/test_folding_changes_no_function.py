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


# GPT-2 and Llama keep their residual stream to themselves, MiniLM and the encoder return it.
EXPECTED = {"minilm": 6 * 3, "gpt2": 2 * 3 + 1, "llama": 2 + 1, "encoder": 2 * 2}


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
    # Llama's norms add up squares in float32, in another order now.
    assert (after - before).abs().max() <= (1e-6 if family == "llama" else 1e-12) * before.abs().max()


class Plain(nn.Module):
    """An MLP whose hidden units something may be done to."""

    def __init__(
        self,
        between: Callable[[Tensor], Tensor] | nn.Module = functional.gelu,
        width: int = WIDTH,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(width, hidden)
        self.between = between
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.between(self.up(x)))


class Gated(nn.Module):
    """SwiGLU: two layers write the hidden units together."""

    def __init__(self, width: int = WIDTH, hidden: int = HIDDEN) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width)
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


class ByHand(nn.Module):
    """RMSNorm as Llama writes it, and a scale of its own for each unit."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.scale = nn.Parameter(torch.rand(1, size))

    def forward(self, h: Tensor) -> Tensor:
        dtype = h.dtype
        size = h.pow(2).mean(-1, keepdim=True)
        y: Tensor = self.weight * (h * torch.rsqrt(size + 1e-6)).to(dtype) * self.scale
        return y


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
        lambda: Plain(ByHand(HIDDEN)),
        lambda: Plain(lambda h: h * h.mean(-1, keepdim=True)),
        lambda: Plain(lambda h: h * torch.sigmoid(1.702 * h)),
        lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDTH)),
    ],
    ids=[
        "gelu",
        "gated",
        "dropout",
        "layer norm",
        "rms norm",
        "rms by hand",
        "mean",
        "by hand",
        "sequential",
    ],
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


class Residual(nn.Module):
    """Every block reads a stream through a norm and adds to it; tokens and places are where it comes from."""

    head: nn.Linear
    tokens: nn.Embedding

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(16, HIDDEN), nn.Parameter(torch.randn(1, 5, HIDDEN))
        self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN), ByHand(HIDDEN), nn.RMSNorm(HIDDEN)])
        self.blocks = nn.ModuleList([Plain(width=HIDDEN, hidden=12), Gated(width=HIDDEN, hidden=12)])
        self.head = nn.Linear(HIDDEN, 16, bias=False)
        for norm in (self.norms[0], self.norms[2]):
            nn.init.normal_(norm.get_parameter("weight"))

    def forward(self, tokens: Tensor) -> Any:
        x = self.tokens(tokens) + self.places
        for norm, block in zip(self.norms, self.blocks, strict=False):
            x = x + block(norm(x))
        return self.head(self.norms[2](x))


class Tied(Residual):
    """The head reads the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.tokens.weight


def stream_of(model: nn.Module) -> HiddenSpace:
    (space,) = (space for space in hidden_spaces(model, linears(model)) if space.vectors)
    return space


@pytest.mark.parametrize("make", [Residual, Tied])
def test_a_residual_stream_is_permuted_from_its_embeddings_to_its_head(make: type[Residual]) -> None:
    model = make().double()
    stream = stream_of(model)
    assert stream.why_not == ""
    assert {(member.layer, member.outputs) for member in stream.members} == {
        ("blocks.0.up", False), ("blocks.0.down", True), ("blocks.1.gate", False), ("blocks.1.up", False),
        ("blocks.1.down", True), ("head", False),
    }  # fmt: skip
    assert set(stream.vectors) == {
        "tokens.weight",
        "places",
        *(n for n, _ in model.named_parameters() if "norms" in n),
    }
    tokens = torch.arange(10).view(2, 5)
    with torch.no_grad():
        before = model.eval()(tokens)
        first = model.tokens.weight.clone()
        order = random_order(stream, 0)
        Folding(Plan({}), ((stream, order),)).apply_(model)
        assert torch.equal(model.tokens.weight, first[:, torch.from_numpy(order)])
        assert (model.head.weight is model.tokens.weight) == (make is Tied)
        assert (model(tokens) - before).abs().max() <= 1e-12 * before.abs().max()


def test_planted_blocks_of_a_stream_become_slices() -> None:
    model = Residual().double().eval()
    of_stream = np.random.default_rng(0).permutation(np.arange(HIDDEN) % K)
    of_hidden = np.random.default_rng(1).permutation(np.arange(12) % K)
    of_head = np.arange(16) % K
    layers = {}
    for name, layer in linears(model).items():
        rows, columns = ({HIDDEN: of_stream, 12: of_hidden, 16: of_head}[size] for size in layer.shape)
        mask = rows[:, None] == columns[None, :]
        layers[name] = LayerPlan("components", components(mask), mask, 1.0, 1.0, None, "exact blocks")
    found = gt.folding(model, Plan(layers))
    tokens = torch.arange(10).view(2, 5)
    with torch.no_grad():
        before = gt.apply_mask_(copy.deepcopy(model), Plan(layers))(tokens)
        gt.convert_(found.apply_(model), found.plan)
        assert (model(tokens) - before).abs().max() <= 1e-12 * before.abs().max()
    for planned_layer in found.plan.values():
        assert planned_layer.reason == "exact blocks"
        assert all(consecutive(part.inputs) for part in planned_layer.sub_operators)


class Elsewhere(Residual):
    """Reads the embedding as a matrix, too."""

    def forward(self, tokens: Tensor) -> Any:
        return super().forward(tokens) + functional.linear(self.places[..., :HIDDEN], self.tokens.weight)


class Sliced(Residual):
    """Reads a part of the places."""

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.tokens(tokens) + self.places[:, :1])


def listened() -> nn.Module:
    model = Residual()
    model.tokens.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("make", [Elsewhere, Sliced, listened])
def test_a_stream_that_something_else_sees_keeps_its_order(make: Callable[[], nn.Module]) -> None:
    assert not any("head" in {m.layer for m in space.members} for space in free_spaces(make()))


def bert(kind: str) -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, kind)(config).double().eval()
    return made


@pytest.mark.parametrize(
    "kind", ["BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering"]
)
def test_the_stream_of_a_bert_with_a_head_is_free(kind: str) -> None:
    model = bert(kind)
    (stream,) = (space for space in free_spaces(model) if space.vectors)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        before = outputs_of(model, "bert")
        Folding(Plan({}), ((stream, random_order(stream, 0)),)).apply_(model)
        assert (outputs_of(model, "bert") - before).abs().max() <= 1e-12 * before.abs().max()


def adapted() -> nn.Module:
    model = bert("BertForTokenClassification")
    model.get_submodule("bert.encoder.layer.0").add_module("adapter", nn.Linear(32, 32))
    return model


def showing() -> nn.Module:
    model = bert("BertForTokenClassification")
    config: Any = model.config
    config.output_hidden_states = True
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (adapted, r"'bert.encoder.layer.0.adapter' may see them too"),
        (showing, "what calls the model sees them too"),
        (lambda: bert("BertForMaskedLM"), ""),
    ],
)
def test_the_stream_of_a_model_that_shows_it_keeps_its_order(
    make: Callable[[], nn.Module], words: str
) -> None:
    said = [space.why_not for space in hidden_spaces(make(), linears(make())) if space.vectors]
    assert said == ([words] if words else [])


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


class ReadTwice(Plain):
    """Reads a layer's weight once more by itself."""

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x)) + functional.linear(x, self.up.weight).cumsum(-1).mean()


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
        (lambda: Plain(lambda h: h * h.mean(0)), "mean sees them too"),
        (lambda: Plain(lambda h: h * h.cumsum(-1).mean(-1, keepdim=True)), "cumsum sees them too"),
        (ReadTwice, "what calls 'up' reads its parameters too"),
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
