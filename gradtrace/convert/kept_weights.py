"""The weights that a mask or a plan speaks of, and which of their dependencies stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.masks import masks_by_name
from gradtrace.convert.matching import match_layers
from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.structure.plan import Plan

__all__ = ["KeptWeights", "kept_weights", "planned_weights", "shapes_of"]

KeptWeights = dict[str, tuple[Tensor, NDArray[np.bool_]]]


def kept_weights(
    model: nn.Module, mask: Mapping[str, NDArray[np.bool_]] | Plan, masked: bool = False
) -> KeptWeights:
    """Canonical parameter name -> (parameter, bool array of its shape).

    Of a plan those of the layers that become sub-operators, or of all with `masked`.

    Raises:
        MismatchError: the mask or plan is for another model.
        StateError: a plan's layer has been converted already.
        UnsupportedError: a plan's layer whose weight is computed by a hook: it would undo the mask.
        InvalidValueError: an entry that is no bool array.
    """
    if not isinstance(mask, Plan):
        return masks_by_name(model, mask)
    layers = match_layers(model, shapes_of(mask), "the plan")
    return planned_weights(mask, layers, list(mask) if masked else list(mask.converted))


def planned_weights(plan: Plan, layers: Mapping[str, LinearLayer], names: list[str]) -> KeptWeights:
    """The weights of these layers of a plan; UnsupportedError for one that a hook computes."""
    found: KeptWeights = {}
    for name in names:
        layer, kept = layers[name], plan[name].mask
        if not layer.has_weight and not kept.all():
            raise UnsupportedError(f"layer '{name}' cannot be masked: {layer.obstacle}")
        parameter = layer.parameter
        if layer.rows is None:
            found[layer.parameter_name] = parameter, kept.T if layer.inputs_first else kept
            continue
        # One entry for a parameter that several layers share; what the plan does not name stays.
        whole = np.ones(tuple(parameter.shape), dtype=np.bool_)
        _, together = found.setdefault(layer.parameter_name, (parameter, whole))
        layer.of_parameter(together)[:] = kept
    return found


def shapes_of(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Layer name -> (outputs, inputs); InvalidValueError for what is no Plan."""
    if not isinstance(plan, Plan):
        raise InvalidValueError("plan", expected="a Plan, as gt.plan makes it", got=type(plan).__name__)
    return {name: layer_plan.mask.shape for name, layer_plan in plan.items()}
