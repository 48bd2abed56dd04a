"""`gradtrace assess`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradtrace.commands.options import AsJson, LedgerPath, Model, Tokens
from gradtrace.commands.output import show

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradtrace.structure.cost import CostTable

__all__ = ["assess"]


def assess(
    ledger: LedgerPath,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="WEIGHTS", help="Final weights: Lightning checkpoint, state_dict, safetensors."),
    ] = None,
    model: Model = None,
    q: Annotated[float, typer.Option("--q", help="The false discovery rate, in (0, 1].")] = 0.1,
    tokens: Tokens = 512,
    as_json: AsJson = False,
) -> None:
    """Tell in plain words what a run learned and what it did not, where time goes, and what to do next.

    With --weights it is told which layers hardly moved; with --model too, attention heads are named and time
    is predicted by a cost model that is measured here, in some seconds.

    Example: `gradtrace assess runs/mnist/seed-0/mnist.ledger.zarr --weights runs/mnist/seed-0/mnist.ckpt`
    """
    import gradtrace as gt
    from gradtrace.commands.given_weights import given_weights
    from gradtrace.errors import InvalidValueError
    from gradtrace.report.assessment_table import assessment_table
    from gradtrace.report.assessment_words import assessment_lines, next_lines

    if model is not None and weights is None:
        raise InvalidValueError(
            "--model", expected="--weights beside it", got="none", remedy="pass the final weights too"
        )
    opened = gt.Ledger.open(ledger)
    arrays, built = (None, None) if weights is None else given_weights(weights, model)
    found = gt.assess(opened, built or arrays, q=q, cost=None if built is None else _cost(built, tokens))
    said, advice = assessment_lines(found), next_lines(found, weights=weights is not None)
    data = found.to_json() | {"words": list(said), "next": list(advice)}
    show(as_json, data, assessment_table(found), lines=(*said, "", "What to do next:", *advice))


def _cost(model: nn.Module, tokens: int) -> CostTable | None:
    """The costs where the model is; None where no layer like its own could be timed."""
    from gradtrace.convert.linear_layer import is_plain
    from gradtrace.convert.timing import cost_table

    wide: list[Tensor] = [one for one in model.parameters() if one.ndim >= 2 and is_plain(one)]
    return cost_table(wide[0].device, wide[0].dtype, tokens) if wide else None
