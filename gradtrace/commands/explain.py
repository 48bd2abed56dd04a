"""`gradtrace explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradtrace.commands.options import (
    AsJson,
    By,
    Density,
    Granularity,
    LedgerPath,
    Model,
    Validate,
    WeightsPath,
)
from gradtrace.commands.output import progress, show

if TYPE_CHECKING:
    from torch import nn

    from gradtrace.evidence.mask import Mask
    from gradtrace.ledger.reader import Ledger

__all__ = ["explain"]


def explain(
    ledger: LedgerPath,
    weights: WeightsPath,
    by: By = None,
    density: Density = None,
    granularity: Granularity = "element",
    test: Annotated[
        str, typer.Option(help="The test of what was learned: departure, drift, sign or init.")
    ] = "departure",
    method: Annotated[
        str, typer.Option(help="How false discoveries are held down: local, bh, by or e-bh.")
    ] = "local",
    q: Annotated[float, typer.Option("--q", help="The false discovery rate, in (0, 1].")] = 0.1,
    model: Model = None,
    validate: Validate = None,
    mask_out: Annotated[Path | None, typer.Option(help="Write the mask here, as safetensors.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say of each dependency whether it was learned and whether it matters, and so why it is kept or dropped.

    Without --density only what no step supported, or what is zero, is dropped. With --model and --validate
    the dropped are zeroed, reset to the opening balance and kept in turn, and each is measured.

    Example: `gradtrace explain runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt
    --density 0.3`
    """
    import gradtrace as gt
    from gradtrace.commands.given_weights import given_weights
    from gradtrace.commands.named_target import named_target
    from gradtrace.errors import InvalidValueError
    from gradtrace.evidence.criterion import DEFAULT
    from gradtrace.report.learned_tables import explanation_lines, explanation_table

    if (model is None) != (validate is None):
        raise InvalidValueError(
            "--model and --validate",
            expected="both or neither",
            got="one",
            remedy="leave both out for the reasons only",
        )
    if validate is not None:
        named_target(validate, "--validate")
    opened = gt.Ledger.open(ledger)
    arrays, built = given_weights(weights, model)
    with progress(sum(len(one.shape) >= 2 for one in opened.values())) as step:
        found = gt.explain(
            opened,
            arrays if built is None else built,
            density,
            by=by or DEFAULT,
            test=test,
            method=method,  # type: ignore[arg-type]  # checked where it is used
            q=q,
            granularity=granularity,
            step=step,
        )
    arms = {} if built is None or validate is None else _arms(built, found.mask, opened, validate)
    if mask_out is not None:
        found.mask.save(mask_out)
    lines = (
        *explanation_lines(found),
        *(f"dropped weights {_SAID[arm]}: {v:.4g}" for arm, v in arms.items()),
    )
    show(as_json, found.to_json() | {"quality": arms or None}, explanation_table(found), lines=lines)


_SAID = {"zero": "zeroed", "reset": "reset to the opening balance", "keep": "kept as they are"}


def _arms(model: nn.Module, mask: Mask, ledger: Ledger, validate: str) -> dict[str, float]:
    from copy import deepcopy

    import gradtrace as gt
    from gradtrace.commands.named_target import quality
    from gradtrace.convert.arms import ARMS

    return {
        arm: quality(validate, gt.apply_mask_(deepcopy(model), mask, dropped=arm, ledger=ledger))
        for arm in ARMS
    }
