"""A plan for a whole model: every linear layer, planned by costs measured where the model lives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradtrace import __version__
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.linears import linears
from gradtrace.convert.masks import masks_by_name
from gradtrace.convert.model import check_model
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.convert.timing import cost_table, measure_beside
from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.structure.plan import DENSE, LayerPlan, Plan
from gradtrace.structure.planner import Candidate, plan_layer

__all__ = ["plan"]


def plan(
    model: nn.Module, mask: Mapping[str, NDArray[np.bool_]], tokens: int = 512, refuse: bool = True
) -> Plan:
    """How each linear layer of `model` should run, keeping what `mask` keeps, for inputs of `tokens` rows.

    The winner of each layer is measured beside the dense layer on the model's own device, dtype and threads;
    the model is not changed. A layer stays dense, and its plan says why, where nothing is faster, where the
    mask has no entry for it, or where it cannot be replaced. With `refuse=False` the best decomposed form is
    planned even where it is slower. Masks of other parameters (embeddings, convolutions) are left to
    `apply_mask_`.

    Raises:
        MismatchError: the mask names a parameter that the model lacks, or has of another shape.
        InvalidValueError: `tokens` below 1, a mask that is no mapping of bool arrays, or no nn.Module.
        UnsupportedError: a layer without values (lazy, or on the meta device), where nothing can be measured.
    """
    check_model(model)
    if type(tokens) is not int or tokens < 1:
        raise InvalidValueError("tokens", expected="an integer of at least 1", got=repr(tokens))
    masks = masks_by_name(model, mask)
    kept_by_weight = {id(parameter): kept for parameter, kept in masks.values()}
    layers = linears(model)
    planned = {
        name: _plan_layer(layer, _kept_of(layer, kept_by_weight), tokens, refuse)
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


def _plan_layer(layer: LinearLayer, kept: NDArray[np.bool_] | None, tokens: int, refuse: bool) -> LayerPlan:
    if layer.parameter.is_meta:
        raise UnsupportedError(f"layer '{layer.name}' is on the meta device", remedy="load its weights first")
    table = cost_table(layer.parameter.device, layer.parameter.dtype, tokens) if layer.timed else None
    why = "the mask has no entry for it" if kept is None else layer.obstacle
    if kept is not None and table is not None and not why:
        return plan_layer(kept, table, refuse=refuse, confirm=partial(_measure, layer.linear(), kept, tokens))
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
