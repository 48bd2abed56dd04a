"""BERT, GPT-2, Llama and torch's encoder, converted, are the masked dense models that they must equal."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from whole_models import FAMILIES, batch_of, build, outputs_of

import gradtrace as gt
from gradtrace.convert.linears import linears
from gradtrace.structure.plan import Plan

Masks = dict[str, NDArray[np.bool_]]
MasksOf = Callable[..., Masks]
FAMILY = pytest.mark.parametrize("family", FAMILIES)

built = lru_cache(build)


def masked_and_converted(
    family: str, masks_of: MasksOf, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, nn.Module, Plan]:
    model = copy.deepcopy(built(family)).to(dtype)
    names = {layer.parameter_name for layer in linears(model).values() if not layer.obstacle}
    masks = {name: mask for name, mask in masks_of(model).items() if name in names}
    plan = gt.plan(model, masks, refuse=False)
    reference = gt.apply_mask_(copy.deepcopy(model), plan)
    return reference, gt.convert_(model, plan), plan


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def routed_of(model: nn.Module, name: str) -> gt.RoutedLinear:
    routed = model.get_submodule(name)
    assert isinstance(routed, gt.RoutedLinear)
    return routed


def as_dense(routed: gt.RoutedLinear, weight: Tensor) -> Tensor:
    """A flat `weight` like the layer's as (outputs, inputs)."""
    like = copy.deepcopy(routed)
    with torch.no_grad():
        like.weight.copy_(weight)
        return like.to_dense()


@FAMILY
def test_every_layer_is_converted_and_verified(
    family: str, masks_of: MasksOf, device: SimpleNamespace
) -> None:
    reference, converted, plan = masked_and_converted(family, masks_of)
    convertible = [name for name, layer in linears(built(family)).items() if not layer.obstacle]
    assert list(plan.converted) == convertible
    assert len(convertible) >= 2 * 4
    report = gt.verify(reference, converted, batch_of(family), original=built(family))
    assert set(report.layers) == set(report.lost) == set(convertible)
    assert all(value > 0 for value in report.lost.values())


@FAMILY
def test_what_gets_no_faster_stays_dense_and_says_so(
    family: str, masks_of: MasksOf, device: SimpleNamespace
) -> None:
    model = copy.deepcopy(built(family))
    device.speed = 0.5
    plan = gt.plan(model, masks_of(model))
    assert plan.converted == ()
    assert all(layer.reason.startswith("stays dense: ") for layer in plan.values())
    gt.convert_(model, plan)
    assert_same_state(model.state_dict(), built(family).state_dict())
    device.speed = 2.0
    faster = gt.plan(model, masks_of(model))
    assert faster.converted == masked_and_converted(family, masks_of)[2].converted
    assert not any(isinstance(one, gt.RoutedLinear) for one in model.modules())
    gt.convert_(model, faster)
    assert sum(isinstance(one, gt.RoutedLinear) for one in model.modules()) == len(faster.converted)


@FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_still_verified_in_half_precision(
    family: str, dtype: torch.dtype, masks_of: MasksOf, device: SimpleNamespace
) -> None:
    reference, converted, _ = masked_and_converted(family, masks_of)
    report = gt.verify(reference.to(dtype), converted.to(dtype), batch_of(family))
    assert {one.tolerance for one in report.layers.values()} == {2e-2 if dtype == torch.bfloat16 else 2e-3}


@FAMILY
def test_gradients_are_those_of_the_masked_dense_model(
    family: str, masks_of: MasksOf, device: SimpleNamespace
) -> None:
    reference, converted, plan = masked_and_converted(family, masks_of)
    for model in (reference, converted):
        torch.autograd.backward(outputs_of(model, family).square().mean())
    for name, layer in linears(reference).items():
        if name not in plan.converted:
            continue
        routed = routed_of(converted, name)
        assert routed.weight.grad is not None
        assert layer.parameter.grad is not None
        whole = torch.from_numpy(np.ascontiguousarray(layer.of_parameter(layer.parameter.grad.numpy())))
        covered = as_dense(routed, torch.ones_like(routed.weight)).bool()
        assert_close(as_dense(routed, routed.weight.grad), whole * covered, 1e-4)
    # What is not converted, embeddings and norms, is under the same name in both.
    named = dict(reference.named_parameters())
    same = {name: one for name, one in converted.named_parameters() if name in named and one.ndim}
    same = {name: one for name, one in same.items() if one.shape == named[name].shape}
    assert any("norm" in name.lower() or "ln_" in name for name in same)
    for name, parameter in same.items():
        expected = named[name].grad
        assert (parameter.grad is None) == (expected is None)
        # The bias of keys has a gradient of rounding errors: softmax does not see it.
        if parameter.grad is not None and expected is not None and "key.bias" not in name:
            assert_close(parameter.grad, expected, 1e-4)


@FAMILY
def test_one_more_step_of_training_is_the_masked_dense_models(
    family: str, masks_of: MasksOf, device: SimpleNamespace
) -> None:
    reference, converted, plan = masked_and_converted(family, masks_of)
    before = outputs_of(converted, family).detach()
    for model in (reference, converted):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        torch.autograd.backward(outputs_of(model, family).square().mean())
        optimizer.step()
    with torch.no_grad():
        for name, layer in linears(reference).items():
            if name in plan.converted:
                routed = routed_of(converted, name)
                layer.weight.mul_(as_dense(routed, torch.ones_like(routed.weight)))
        got, expected = outputs_of(converted, family), outputs_of(reference, family)
    assert_close(got, expected, 1e-4)
    assert (got - before).abs().max() > 1e-3 * expected.abs().max()


def test_a_fresh_process_loads_what_was_saved(
    masks_of: MasksOf, device: SimpleNamespace, tmp_path: Path
) -> None:
    converted = {family: masked_and_converted(family, masks_of)[1] for family in FAMILIES}
    for family, model in converted.items():
        gt.save(model, tmp_path / family)
    script = """
import sys, torch, gradtrace as gt
from pathlib import Path
from safetensors.torch import save_file
from whole_models import FAMILIES, build, outputs_of
torch.set_num_threads(int(sys.argv[2]))
folder, found = Path(sys.argv[1]), {}
for family in FAMILIES:
    model = gt.load(build(family), folder / family).eval()
    with torch.no_grad():
        found[family] = outputs_of(model, family)
save_file(found, folder / "found.safetensors")
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads())],
        check=True,
        timeout=240,
        cwd=Path(__file__).parent,
    )
    found = load_file(tmp_path / "found.safetensors")
    with torch.no_grad():
        same = {
            family: torch.equal(outputs_of(one, family), found[family]) for family, one in converted.items()
        }
    assert same == dict.fromkeys(FAMILIES, True)


@FAMILY
def test_it_compiles_to_one_graph(family: str, masks_of: MasksOf, device: SimpleNamespace) -> None:
    _, converted, _ = masked_and_converted(family, masks_of)
    compiled = torch.compile(converted, backend="aot_eager", fullgraph=True)
    assert isinstance(compiled, nn.Module)
    with torch.no_grad():
        assert_close(outputs_of(compiled, family), outputs_of(converted, family))


@FAMILY
def test_it_exports(family: str, masks_of: MasksOf, device: SimpleNamespace) -> None:
    _, converted, _ = masked_and_converted(family, masks_of)
    exported = torch.export.export(converted, (), batch_of(family), strict=False).module()
    with torch.no_grad():
        assert_close(outputs_of(exported, family), outputs_of(converted, family))


@FAMILY
def test_the_way_back_is_the_masked_dense_model(
    family: str, masks_of: MasksOf, device: SimpleNamespace
) -> None:
    reference, converted, _ = masked_and_converted(family, masks_of)
    assert gt.to_dense_(converted) is converted
    assert [type(module) for module in converted.modules()] == [type(one) for one in reference.modules()]
    assert_same_state(converted.state_dict(), reference.state_dict())
    trains = {name: parameter.requires_grad for name, parameter in reference.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in converted.named_parameters()} == trains
    with torch.no_grad():
        assert torch.equal(outputs_of(converted, family), outputs_of(reference, family))
    copy.deepcopy(built(family)).load_state_dict(converted.state_dict())


@FAMILY
def test_copies_and_other_dtypes_compute_the_same(
    family: str, masks_of: MasksOf, device: SimpleNamespace
) -> None:
    reference, converted, _ = masked_and_converted(family, masks_of)
    copied = copy.deepcopy(converted)
    with torch.no_grad():
        assert torch.equal(outputs_of(copied, family), outputs_of(converted, family))
        assert_close(
            outputs_of(copied.to(torch.float64), family),
            outputs_of(reference.to(torch.float64), family),
            1e-12,
        )
    assert all(type(value) is Tensor for value in copied.state_dict().values())


def assert_same_state(got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert got.keys() == expected.keys()
    differing = [name for name, value in expected.items() if not torch.equal(got[name], value)]
    assert differing == []
