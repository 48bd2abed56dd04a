"""`gradtrace convert`."""

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
    Refuse,
    Scope,
    Tokens,
    Validate,
    WeightsPath,
)
from gradtrace.commands.output import show
from gradtrace.commands.planned import plan_facts, planned

__all__ = ["convert"]


def convert(
    ledger: LedgerPath,
    weights: WeightsPath,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder for the converted model; an earlier one is replaced."),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="PKG.MOD:FACTORY", help="Function that builds the module, no arguments."
        ),
    ],
    by: By = None,
    density: Density = None,
    fdr: Fdr = None,
    max_latency: MaxLatency = None,
    max_loss_increase: MaxLossIncrease = None,
    scope: Scope = "layer",
    granularity: Granularity = "rows",
    tokens: Tokens = 512,
    refuse: Refuse = True,
    compensate: Annotated[
        bool,
        typer.Option(
            "--compensate/--no-compensate",
            help='Refit what is kept by least squares, from a ledger recorded with below=("inputs", "gram").',
        ),
    ] = False,
    validate: Validate = None,
    as_json: AsJson = False,
) -> None:
    """Convert a trained model: plan, replace the layers that gain, verify each against its masked self, save.

    A converted layer must equal the masked dense one, or nothing is written. With --compensate what is kept
    makes up for what is dropped.

    Example: `gradtrace convert runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt converted
    --density 0.5 --model recipes.mnist:model --validate recipes.mnist:validate`
    """
    from copy import deepcopy

    import torch

    import gradtrace as gt
    from gradtrace.commands.named_target import named_target, quality
    from gradtrace.convert.linears import linears
    from gradtrace.report.compensation_table import (
        compensation_facts,
        compensation_lines,
        compensation_table,
    )
    from gradtrace.report.tables import plan_lines, plan_table
    from gradtrace.report.verification_table import verification_facts, verification_table

    if validate is not None:
        named_target(validate, "--validate")
    made, mask, dense = planned(
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
    found = gt.compensation(dense, made, gt.Ledger.open(ledger)) if compensate else None
    fitted = dense if found is None else found.apply_(deepcopy(dense))
    converted = gt.convert_(deepcopy(fitted), made)
    masked = gt.apply_mask_(deepcopy(fitted), made)
    generator = torch.Generator().manual_seed(0)
    references = linears(masked)
    verified = {}
    for name in made.converted:
        batch = torch.randn(tokens, made[name].mask.shape[1], generator=generator)
        verified[name] = gt.verify(references[name].linear(), converted.get_submodule(name), batch).output
    asked = {"dense": dense, "masked": gt.apply_mask_(deepcopy(dense), made)}
    asked |= {"converted": converted} if found is None else {"compensated": masked, "converted": converted}
    said = {} if validate is None else {what: quality(validate, one) for what, one in asked.items()}
    gt.save(converted, out)
    lines = (
        *plan_lines(made),
        *(() if found is None else compensation_lines(found)),
        *(f"{what}: {value:.4g}{_change(value, said['dense'], what)}" for what, value in said.items()),
        f"{len(made.converted)} of {len(made)} layers converted and verified; saved to {out}",
    )
    data = plan_facts(made, mask) | {"out": str(out), "converted": made.converted, "quality": said or None}
    data["verification"] = verification_facts(verified)
    data["compensation"] = None if found is None else compensation_facts(found)
    tables = [plan_table(made)]
    tables += [] if found is None else [compensation_table(found)]
    tables += [verification_table(verified)] if verified else []
    show(as_json, data, *tables, lines=lines)


def _change(value: float, dense: float, what: str) -> str:
    return "" if what == "dense" else f" ({value - dense:+.4g})"
