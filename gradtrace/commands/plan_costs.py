"""The costs that a plan was made with, where they are from, and how near its predictions came."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gradtrace.convert.kept_costs import Costs
    from gradtrace.structure.plan import Plan

__all__ = ["cost_facts", "cost_lines"]

_SIDE = 1024


def cost_lines(plan: Plan, module: nn.Module) -> tuple[str, ...]:
    """One line for each device and dtype, and one on the layers that were measured."""
    lines = [_line(device, dtype, costs) for device, dtype, costs in _costs(plan, module)]
    errors = _errors(plan)
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        middle = sorted(errors.values())[len(errors) // 2]
        lines.append(
            f"Predictions beside measurements, layers: {len(errors)}, median error: {middle:.0%}, "
            f"largest: {errors[worst]:.0%} ({worst})."
        )
    if "budget" in plan.provenance:
        told = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in plan.provenance["budget"].items()
        )
        lines.append(f"Budget: {told}.")
    return tuple(lines)


def cost_facts(plan: Plan, module: nn.Module) -> dict[str, Any]:
    """What `--json` tells of them: the tables in full, and the error of each prediction."""
    costs = [
        {
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "measured": costs.measured,
            "file": None if costs.path is None else str(costs.path),
            "table": asdict(costs.table),
        }
        for device, dtype, costs in _costs(plan, module)
    ]
    return {"costs": costs, "prediction_errors": _errors(plan)}


def _costs(plan: Plan, module: nn.Module) -> list[tuple[torch.device, torch.dtype, Costs]]:
    from gradtrace.convert.linears import linears
    from gradtrace.convert.timing import costs

    timed = [layer.parameter for layer in linears(module).values() if layer.timed]
    kinds = dict.fromkeys((weight.device, weight.dtype) for weight in timed)
    return [(device, dtype, costs(device, dtype, plan.provenance["tokens"])) for device, dtype in kinds]


def _line(device: torch.device, dtype: torch.dtype, costs: Costs) -> str:
    table = costs.table
    where = "not kept" if costs.path is None else f"kept in {costs.path} (remove it to measure anew)"
    dense = table.predict_dense(_SIDE, _SIDE) * 1e3
    return (
        f"Costs on {device} in {str(dtype).removeprefix('torch.')}, {table.tokens} tokens: "
        f"dense {_SIDE} x {_SIDE} {dense:.3g} ms; a routed layer {table.per_call * 1e6:.3g} us, "
        f"each sub-operator {table.per_sub_operator * 1e6:.3g} us, each element gathered "
        f"{table.gather * 1e9:.2g} ns, scattered {table.scatter * 1e9:.2g} ns; "
        f"measured {costs.measured}, {where}."
    )


def _errors(plan: Plan) -> dict[str, float]:
    """Layer -> |predicted / measured speed - 1|, where both are known."""
    return {
        name: abs(layer.dense / layer.predicted / layer.measured - 1)
        for name, layer in plan.items()
        if layer.measured and layer.predicted
    }
