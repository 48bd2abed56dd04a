"""`gradtrace compare`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradtrace.commands.given_weights import given_weights
from gradtrace.commands.options import AsJson, Granularity, LedgerPath, Model, Scope, Validate, WeightsPath
from gradtrace.commands.output import progress, show
from gradtrace.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import nn

    from gradtrace.evidence.mask import Mask

__all__ = ["compare"]

DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)


def compare(
    ledger: LedgerPath,
    weights: WeightsPath,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="A criterion; repeat for several. Left out: all that LEDGER can answer."),
    ] = None,
    density: Annotated[list[float] | None, typer.Option(help="A density; repeat for several.")] = None,
    scope: Scope = "layer",
    granularity: Granularity = "element",
    model: Model = None,
    validate: Validate = None,
    as_json: AsJson = False,
) -> None:
    """Compare criteria: on what their masks agree and, with --model and --validate, what each mask is worth.

    Example: `gradtrace compare runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt
    --model recipes.mnist:model --validate recipes.mnist:validate`
    """
    import gradtrace as gt
    from gradtrace.evidence.agreement import agreement
    from gradtrace.evidence.calibration import calibration
    from gradtrace.evidence.curves import Curves, quality_at_density
    from gradtrace.report.tables import agreement_table, quality_table, verdict_lines

    densities = tuple(density) if density else DENSITIES
    _check(tuple(by or ()), densities, model, validate)
    opened = gt.Ledger.open(ledger)
    names = tuple(dict.fromkeys(by)) if by else tuple(c.name for c in gt.criteria(opened))
    arrays, built = given_weights(weights, model)
    target = arrays if built is None else built
    measured = len(names) * len(densities) if built is not None else 0
    with progress(len(names) * (1 + len(densities)) + measured) as step:
        scores = {}
        for name in names:
            scores[name] = gt.score(opened, target, by=name)
            step(f"scoring {name}")
        agreements = {}
        for d in (d for d in densities if d < 1):
            chosen = {}
            for name in names:
                chosen[name] = gt.select(scores[name], density=d, scope=scope, granularity=granularity)
                step(f"masks at density {d:g}")
            agreements[d] = agreement(chosen)
        curves: Curves | None = None
        if built is not None and validate is not None:
            evaluate = _evaluation(built, validate, step)
            curves = quality_at_density(scores, evaluate, densities, scope=scope, granularity=granularity)
    data: dict[str, Any] = {
        "ledger": str(ledger),
        "weights": str(weights),
        "scope": scope,
        "granularity": granularity,
        "agreement": {f"{d:g}": found.to_json() for d, found in agreements.items()},
        "quality": None if curves is None else curves.to_json(),
    }
    tables = [agreement_table(found, title=f"Agreement at density {d:g}") for d, found in agreements.items()]
    lines: tuple[str, ...] = ("Pass --model and --validate to see what each mask is worth.",)
    if curves is not None:
        tables.append(quality_table(curves))
        lines = verdict_lines(curves)
    if "decoy_sum" in opened.accumulators:
        checked = calibration(opened)
        data["calibration"] = checked.to_json()
        lines = (*checked.findings, *lines)
    show(as_json, data, *tables, lines=lines)


def _check(
    names: tuple[str, ...], densities: tuple[float, ...], model: str | None, validate: str | None
) -> None:
    # Everything that can be told before the wait.
    from gradtrace.commands.named_target import named_target
    from gradtrace.evidence.criterion import criterion

    for name in names:
        criterion(name)
    for density in densities:
        if not 0 < density <= 1:
            raise InvalidValueError(
                "density", expected="a number in (0, 1]", got=repr(density), remedy="e.g. --density 0.3"
            )
    if (model is None) != (validate is None):
        raise InvalidValueError(
            "--model and --validate",
            expected="both or neither",
            got="one",
            remedy="leave both out for agreement only",
        )
    if validate is not None:
        named_target(validate, "--validate")


def _evaluation(model: nn.Module, validate: str, step: Callable[[str], None]) -> Callable[[Mask], float]:
    from copy import deepcopy

    import gradtrace as gt
    from gradtrace.commands.named_target import quality

    def evaluate(mask: Mask) -> float:
        masked = deepcopy(model)
        gt.apply_mask_(masked, mask)
        step("measuring quality")
        return quality(validate, masked)

    return evaluate
