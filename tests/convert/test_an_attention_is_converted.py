"""nn.MultiheadAttention with decomposed projections computes what the masked one does, whatever the call."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.convert.linears import linears
from gradtrace.convert.routed_attention import RoutedAttention
from gradtrace.errors import InvalidValueError, StateError, UnsupportedError
from gradtrace.structure.plan import LayerPlan, Plan
from gradtrace.structure.row_groups import row_groups

WIDTH, HEADS = 12, 3


class Around(nn.Module):
    """One attention that is a child."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **sizes).double().eval()
        for parameter in self.parameters():
            nn.init.normal_(parameter)  # biases too

    def forward(self, *given: Tensor, **named: Any) -> tuple[Tensor, Tensor | None]:
        found: tuple[Tensor, Tensor | None] = self.attention(*given, **named)
        return found


def plan_of(model: nn.Module, names: tuple[str, ...] = ()) -> Plan:
    layers = {}
    for name, layer in linears(model).items():
        mask = np.random.default_rng(len(name)).random(layer.shape) < 0.4
        if not names or name in names:
            layers[name] = LayerPlan("row groups", row_groups(mask, 5), mask, 1.0, 1.0, None, "")
    return Plan(layers)


def inputs(rows: int = 2, keys: int = 5, key_width: int = WIDTH, first: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, rows, WIDTH), (keys, rows, key_width), (keys, rows, key_width)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tuple(x.transpose(0, 1) if first else x for x in made)


ALLOWED = torch.tensor([[False, i > 2, False, False, i == 0] for i in range(4)])
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


@pytest.mark.parametrize(
    ("sizes", "given", "named"),
    [
        ({}, inputs(), {}),
        ({}, inputs(), {"need_weights": False}),
        ({"batch_first": True}, inputs(first=True), {"average_attn_weights": False}),
        ({}, tuple(x[:, 0] for x in inputs()), {"key_padding_mask": PADDING[1]}),
        ({}, inputs(), {"attn_mask": ALLOWED, "key_padding_mask": PADDING}),
        ({"batch_first": True}, inputs(first=True), {"attn_mask": ALLOWED, "need_weights": False}),
        ({}, inputs(), {"attn_mask": torch.randn(2 * HEADS, 4, 5, dtype=torch.float64)}),
        ({"bias": False}, inputs(), {}),
        ({"kdim": 7, "vdim": 7}, inputs(key_width=7), {}),
    ],
    ids=[
        "plain",
        "no weights",
        "batch first",
        "one row",
        "masks",
        "fused",
        "a mask a head",
        "no bias",
        "sizes",
    ],
)
@pytest.mark.parametrize(
    "names", [(), ("attention.v_proj",), ("attention.out_proj",)], ids=["all", "v", "out"]
)
def test_it_equals_the_masked_attention_and_comes_back(
    sizes: dict[str, Any], given: tuple[Tensor, ...], named: dict[str, Any], names: tuple[str, ...]
) -> None:
    model = Around(**sizes)
    plan = plan_of(model, names)
    reference = gt.apply_mask_(copy.deepcopy(model), plan)
    gt.convert_(model, plan)
    assert isinstance(model.attention, RoutedAttention)
    with torch.no_grad():
        expected, got = reference(*given, **named), model(*given, **named)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    gt.to_dense_(model)
    assert type(model.attention) is nn.MultiheadAttention
    for name, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert list(model.state_dict()) == list(reference.state_dict())


def test_the_rows_of_the_shared_weight_are_masked_each_by_its_layer() -> None:
    model = Around()
    plan = plan_of(model, ("attention.k_proj",))
    before = model.attention.in_proj_weight.detach().clone()
    gt.apply_mask_(model, plan)
    expected = before.clone()
    expected[WIDTH : 2 * WIDTH] *= torch.from_numpy(plan["attention.k_proj"].mask.copy())
    assert torch.equal(model.attention.in_proj_weight, expected)


def test_dense_projections_of_a_converted_attention_are_masked_on_request() -> None:
    model = Around()
    plan = plan_of(model)
    kept = {name: layer for name, layer in plan.items() if name != "attention.q_proj"}
    mask = plan["attention.q_proj"].mask
    plan = Plan(kept | {"attention.q_proj": LayerPlan("dense", (), mask, 1.0, 1.0, None, "")})
    reference = gt.apply_mask_(copy.deepcopy(model), plan, masked=True)
    gt.convert_(model, plan, masked=True)
    assert type(model.attention.q_proj) is nn.Linear
    gt.verify(reference, model, inputs())


def test_dropout_acts_on_the_weights_in_training_alone() -> None:
    model = Around(dropout=0.5)
    gt.convert_(model, plan_of(model))
    model.train()
    weights = model(*inputs())[1]
    assert weights is not None
    assert (weights == 0).any()
    assert not torch.equal(model(*inputs(), need_weights=False)[0], model(*inputs(), need_weights=False)[0])


def test_a_causal_hint_needs_the_mask_as_it_does_in_torch() -> None:
    model = Around()
    gt.convert_(model, plan_of(model))
    with pytest.raises(InvalidValueError, match="is_causal: expected the mask too"):
        model(*inputs(), is_causal=True)


def test_a_converted_projection_is_not_converted_again() -> None:
    model = Around()
    plan = plan_of(model)
    gt.convert_(model, plan)
    with pytest.raises(StateError, match=r"'attention\.q_proj' has been converted already"):
        gt.convert_(model, plan)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("name", ["encoder.layers.0.self_attn.v_proj", "encoder.layers.1.linear1"])
def test_an_encoder_runs_its_converted_layers_where_torch_would_fuse_them(
    name: str, norm_first: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 20, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    model = nn.ModuleDict({"encoder": encoder}).eval()
    plan = plan_of(model, (name,))
    reference = gt.apply_mask_(copy.deepcopy(model), plan)
    gt.convert_(model, plan)
    x = torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        got = model["encoder"](x, src_key_padding_mask=PADDING)
        expected = reference["encoder"](x, src_key_padding_mask=PADDING)
    assert got.shape == expected.shape
    torch.testing.assert_close(got[~PADDING], expected[~PADDING], rtol=1e-5, atol=1e-5)
    gt.verify(reference["encoder"], model["encoder"], x)
    gt.to_dense_(model)
    assert encoder.use_nested_tensor == reference["encoder"].use_nested_tensor
    with torch.no_grad():
        again = model["encoder"](x, src_key_padding_mask=PADDING)
    assert torch.equal(again, expected)


def test_hooks_inside_an_attention_are_not_lost_unsaid() -> None:
    model = Around()
    model.attention.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match=r"'attention\.q_proj' carries forward hooks"):
        gt.convert_(model, plan_of(model))
    assert type(model.attention) is nn.MultiheadAttention
