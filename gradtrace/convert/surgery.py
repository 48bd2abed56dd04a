"""Replacing a model's linear layers by their sub-operators, and the masked dense model that must equal it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.convert.linears import LinearLayer, replace
from gradtrace.convert.masks import masks_by_name
from gradtrace.convert.matching import check_replaceable, match_layers
from gradtrace.convert.model import check_model
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.structure.plan import DENSE, Plan

__all__ = ["apply_mask_", "convert_"]

Model = TypeVar("Model", bound=nn.Module)


def convert_(model: Model, plan: Plan, masked: bool = False) -> Model:
    """Replace, in place, every layer for which `plan` has sub-operators; the model is returned.

    Everything is checked and built before anything is replaced: on an error the model is as it was. Layers
    that the plan leaves dense keep their weights; with `masked`, what their masks drop is zeroed. Make the
    optimizer afterwards: the replaced layers have a new weight parameter, and keep their bias.

    Raises:
        MismatchError: the plan is for another model: a layer is missing or of another shape.
        StateError: a layer has been converted already.
        UnsupportedError: a layer that cannot be replaced (tied weight, hooks, ...), by name.
        InvalidValueError: what is no nn.Module, or no Plan.
    """
    check_model(model)
    layers = match_layers(model, _shapes(plan), "the plan")
    chosen = {name: layers[name] for name in plan.converted}
    check_replaceable(chosen.values())
    built = {name: RoutedLinear.from_linear(layer.module, plan[name]) for name, layer in chosen.items()}
    if masked:
        _zero(_masks(plan, layers, [name for name in plan if plan[name].choice == DENSE]))
    for name, layer in chosen.items():
        replace(layer, built[name])
    return model


def apply_mask_(model: Model, mask: Mapping[str, NDArray[np.bool_]] | Plan, masked: bool = False) -> Model:
    """Zero, in place, the weights that `mask` drops; the model is returned.

    For a Plan this gives the dense model that `convert_` with the same arguments must equal: layers that the
    plan leaves dense are left as they are, unless `masked`.

    Raises:
        MismatchError: the mask or plan is for another model.
        StateError: a plan's layer has been converted already.
        UnsupportedError: a plan's layer whose weight is computed by a hook: it would undo the mask.
        InvalidValueError: an entry that is no bool array, or what is no nn.Module.
    """
    check_model(model)
    if isinstance(mask, Plan):
        layers = match_layers(model, _shapes(mask), "the plan")
        names = list(mask) if masked else list(mask.converted)
        _zero(_masks(mask, layers, names))
    else:
        _zero(list(masks_by_name(model, mask).values()))
    return model


def _shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    if not isinstance(plan, Plan):
        raise InvalidValueError("plan", expected="a Plan, as gt.plan makes it", got=type(plan).__name__)
    return {name: layer_plan.mask.shape for name, layer_plan in plan.items()}


def _masks(
    plan: Plan, layers: Mapping[str, LinearLayer], names: Iterable[str]
) -> list[tuple[Tensor, NDArray[np.bool_]]]:
    found = [(layers[name], plan[name].mask) for name in names]
    for layer, kept in found:
        if not layer.has_weight and not kept.all():
            raise UnsupportedError(f"layer '{layer.name}' cannot be masked: {layer.obstacle}")
    return [(layer.module.weight, kept) for layer, kept in found]


@torch.no_grad()
def _zero(masks: list[tuple[Tensor, NDArray[np.bool_]]]) -> None:
    for parameter, kept in masks:
        if not kept.all():
            parameter.masked_fill_(torch.from_numpy(~kept).to(parameter.device), 0)
