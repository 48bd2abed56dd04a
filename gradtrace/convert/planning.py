"""A plan for a whole model: every linear layer, planned by costs measured where the model lives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradtrace import __version__
from gradtrace.convert.budget import Budget, selected
from gradtrace.convert.budget_search import within_latency, within_loss
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.linears import linears
from gradtrace.convert.masks import masks_by_name
from gradtrace.convert.model import check_model
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.convert.timing import cost_table, measure_beside
from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.evidence.mask import Mask
from gradtrace.structure.plan import DENSE, LayerPlan, Plan
from gradtrace.structure.planner import Candidate, plan_layer

__all__ = ["plan"]


def plan(
    model: nn.Module,
    mask: Mapping[str, NDArray[Any]],
    tokens: int = 512,
    refuse: bool = True,
    *,
    density: float | None = None,
    max_latency: float | None = None,
    max_loss_increase: float | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    scope: str = "layer",
    granularity: str = "rows",
) -> Plan:
    """How each linear layer of `model` should run, keeping what `mask` keeps, for inputs of `tokens` rows.

    The winner of each layer is measured beside the dense layer on the model's own device, dtype and threads;
    the model is not changed. A layer stays dense, and its plan says why, where nothing is faster, where the
    mask has no entry for it, or where it cannot be replaced. With `refuse=False` the best decomposed form is
    planned even where it is slower. Masks of other parameters (embeddings, convolutions) are left to
    `apply_mask_`.

    With one of these, `mask` is scores, of which the plan selects what it keeps, by `scope` and `granularity`
    as `select` does, in the linear layers that can be replaced:

    - `density`: this share.
    - `max_latency`: the largest share that is found at which all linear layers together take at most so many
      seconds, as measured, or as predicted where a layer stays dense.
    - `max_loss_increase`: the smallest share at which `validate`, model -> held-out loss, says at most so
      much more of the masked model (in eval mode; eight masks are tried) than of the dense one. `convert_`
      with `masked=True` makes that model; without, layers that stay dense keep all.

    Shares are multiples of 1/256, found by bisection; `plan.provenance["budget"]` tells which.

    Raises:
        MismatchError: the mask names a parameter that the model lacks, or has of another shape.
        InvalidValueError: `tokens` below 1, a mask that is no mapping of bool arrays, no nn.Module, more than
            one budget, one that no density meets, or what `select` and `validate` cannot be used with.
        UnsupportedError: a layer without values (lazy, or on the meta device), where nothing can be measured.
    """
    check_model(model)
    if type(tokens) is not int or tokens < 1:
        raise InvalidValueError("tokens", expected="an integer of at least 1", got=repr(tokens))
    budget = Budget(density, max_latency, max_loss_increase, validate)
    if not budget.given:
        return _planned(model, mask, tokens, refuse)

    def at(share: float) -> Mask:
        return selected(model, mask, share, scope, granularity)

    def plan_of(chosen: Mask, measured: bool) -> Plan:
        return _planned(model, chosen, tokens, refuse and measured, measured=measured)

    if density is not None:
        found, told = plan_of(at(density), True), {"density": density}
    elif max_loss_increase is not None:
        assert validate is not None
        chosen, told = within_loss(model, at, validate, max_loss_increase)
        found = plan_of(chosen, True)
    else:
        assert max_latency is not None
        return within_latency(at, plan_of, max_latency, refuse=refuse)
    found.provenance["budget"] = told
    return found


def _planned(
    model: nn.Module,
    mask: Mapping[str, NDArray[np.bool_]],
    tokens: int,
    refuse: bool,
    *,
    measured: bool = True,
) -> Plan:
    masks = masks_by_name(model, mask)
    kept_by_weight = {id(parameter): kept for parameter, kept in masks.values()}
    layers = linears(model)
    planned = {
        name: _plan_layer(layer, _kept_of(layer, kept_by_weight), tokens, refuse, measured)
        for name, layer in layers.items()
    }
    weights = {id(layer.parameter) for layer in layers.values()}
    provenance = {
        "tokens": tokens,
        "refuse": refuse,
        "device": _all({str(layer.parameter.device) for layer in layers.values()}),
        "dtype": _all({str(layer.parameter.dtype).removeprefix("torch.") for layer in layers.values()}),
        "threads": torch.get_num_threads(),
        "versions": {"gradtrace": __version__, "torch": str(torch.__version__)},
        "mask": _plain(getattr(mask, "provenance", None)),
        "not linear": [name for name, (parameter, _) in masks.items() if id(parameter) not in weights],
    }
    return Plan(planned, provenance)


def _kept_of(layer: LinearLayer, kept: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    found = kept.get(id(layer.parameter))
    return None if found is None else layer.of_parameter(found)


def _plan_layer(
    layer: LinearLayer, kept: NDArray[np.bool_] | None, tokens: int, refuse: bool, measured: bool
) -> LayerPlan:
    if layer.parameter.is_meta:
        raise UnsupportedError(f"layer '{layer.name}' is on the meta device", remedy="load its weights first")
    table = cost_table(layer.parameter.device, layer.parameter.dtype, tokens) if layer.timed else None
    why = "the mask has no entry for it" if kept is None else layer.obstacle
    if kept is not None and table is not None and not why:
        confirm = partial(_measure, layer.linear(), kept, tokens) if measured else None
        return plan_layer(kept, table, refuse=refuse, confirm=confirm)
    mask = np.broadcast_to(np.True_, layer.shape) if kept is None else kept
    seconds = table.predict_dense(*layer.shape[::-1]) if table is not None else 0.0
    return LayerPlan(DENSE, (), mask, seconds, seconds, None, f"stays dense: {why}")


def _measure(
    linear: nn.Linear, kept: NDArray[np.bool_], tokens: int, candidate: Candidate
) -> tuple[float, float]:
    layer_plan = LayerPlan(candidate.choice, candidate.sub_operators, kept, 0.0, 0.0, None, candidate.words)
    return measure_beside(linear, RoutedLinear.from_linear(linear, layer_plan), tokens)


def _all(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _plain(provenance: object) -> Any:
    """What of a mask's provenance fits into a JSON file, in words where it is no plain value."""
    return json.loads(json.dumps(provenance, default=str))
