"""The plan that a conversion would make, from predictions alone: nothing of it is measured or built."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradtrace.convert.linears import linears
from gradtrace.convert.masks import masks_by_name
from gradtrace.convert.timing import cost_table
from gradtrace.structure.cost import CostTable
from gradtrace.structure.plan import DENSE, LayerPlan, Plan
from gradtrace.structure.planner import MARGIN, PROMISING, plan_layer

__all__ = ["predicted_plan"]


def predicted_plan(model: nn.Module, mask: Mapping[str, NDArray[np.bool_]], tokens: int) -> Plan:
    """As `gradtrace.plan`, but by the cost model only; layers that cannot be timed take no time.

    Every layer is decomposed that `gradtrace.plan` would try, for it measures what is as much as promising.
    One that it then finds slower stays dense: of such a layer dense is the time to expect, not `predicted`.
    """
    kept = {id(parameter): entry for parameter, entry in masks_by_name(model, mask).values()}
    planned = {}
    for name, layer in linears(model).items():
        weight = layer.parameter
        table = cost_table(weight.device, weight.dtype, tokens) if layer.timed else None
        entry = kept.get(id(weight))
        if entry is not None and table is not None and not layer.obstacle:
            planned[name] = _tried(layer.of_parameter(entry), table)
        else:
            seconds = table.predict_dense(*layer.shape[::-1]) if table is not None else 0.0
            whole = np.broadcast_to(np.True_, layer.shape)
            planned[name] = LayerPlan(DENSE, (), whole, seconds, seconds, None, "stays dense")
    return Plan(planned)


def _tried(mask: NDArray[np.bool_], table: CostTable) -> LayerPlan:
    made = plan_layer(mask, table, refuse=False)
    needed = MARGIN if made.weights >= mask.size else PROMISING
    if made.predicted * needed <= made.dense:
        return made
    return LayerPlan(DENSE, (), mask, made.dense, made.dense, None, "stays dense")
