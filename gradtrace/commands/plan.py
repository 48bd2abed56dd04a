"""`gradtrace plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrace.commands.options import (
    AsJson,
    By,
    Density,
    Fdr,
    Granularity,
    LedgerPath,
    MaxLatency,
    MaxLossIncrease,
    Model,
    Refuse,
    Scope,
    Tokens,
    Validate,
    WeightsPath,
)
from gradtrace.commands.output import show
from gradtrace.commands.plan_costs import cost_facts, cost_lines
from gradtrace.commands.planned import plan_facts, planned

__all__ = ["plan"]


def plan(
    ledger: LedgerPath,
    weights: WeightsPath,
    by: By = None,
    density: Density = None,
    fdr: Fdr = None,
    max_latency: MaxLatency = None,
    max_loss_increase: MaxLossIncrease = None,
    scope: Scope = "layer",
    granularity: Granularity = "rows",
    tokens: Tokens = 512,
    refuse: Refuse = True,
    model: Model = None,
    validate: Validate = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here, as JSON.")] = None,
    mask_out: Annotated[Path | None, typer.Option(help="Write the mask here, as safetensors.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan the conversion: which layers become sub-operators, how fast they should be, and which stay dense.

    Without --model the plan is made from the shapes in the ledger alone. Nothing is converted.

    Example: `gradtrace plan runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt --density 0.3
    --out plan.json`
    """
    from gradtrace.report.tables import plan_lines, plan_table

    made, mask, module = planned(
        ledger,
        weights,
        by=by,
        density=density,
        fdr=fdr,
        scope=scope,
        granularity=granularity,
        tokens=tokens,
        refuse=refuse,
        model=model,
        max_latency=max_latency,
        max_loss_increase=max_loss_increase,
        validate=validate,
    )
    if mask_out is not None:
        mask.save(mask_out)
    if out is not None:
        made.save(out)
    facts = plan_facts(made, mask) | cost_facts(made, module)
    show(as_json, facts, plan_table(made), lines=(*plan_lines(made), *cost_lines(made, module)))
