"""`gradtrace estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrace.commands.options import AsJson, By, Granularity, Model, Tokens, Validate
from gradtrace.commands.output import show

__all__ = ["estimate"]


def estimate(
    weights: Annotated[
        Path,
        typer.Argument(metavar="WEIGHTS", help="Lightning checkpoint, state_dict or safetensors."),
    ],
    ledger: Annotated[
        str | None, typer.Option(metavar="LEDGER", help="The run's ledger; left out: by weights alone.")
    ] = None,
    model: Model = None,
    validate: Validate = None,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MOD:FUNCTION", help="Function that makes one batch, to time the whole model."
        ),
    ] = None,
    density: Annotated[
        list[float] | None, typer.Option(help="A density to keep; repeat for several. Left out: nine.")
    ] = None,
    by: By = None,
    granularity: Granularity = "rows",
    tokens: Tokens = 512,
    examples: Annotated[int | None, typer.Option(help="On how many examples --validate judges.")] = None,
    max_loss: Annotated[float, typer.Option(help="Relative loss of quality that is allowed.")] = 0.01,
    traffic: Annotated[
        float | None, typer.Option(help="Items a second, on average over the year; with --price.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="What an hour of a machine like this costs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate, before any conversion, what could go: quality, latency, memory, and what is saved a year.

    Nothing is converted. Quality is judged by --validate on copies of the model with what is dropped zeroed;
    times are predicted by a cost model that is measured here, in some seconds.

    Example: `gradtrace estimate runs/mnist/seed-0/mnist.ckpt --ledger runs/mnist/seed-0/mnist.ledger.zarr
    --model recipes.mnist:model --validate recipes.mnist:validate --examples 1000 --traffic 50000 --price 0.1`
    """
    import gradtrace as gt
    from gradtrace.commands.bare_layers import bare_layers
    from gradtrace.commands.given_weights import given_weights
    from gradtrace.commands.named_target import called, named_target, quality
    from gradtrace.errors import InvalidValueError
    from gradtrace.estimation.estimate import DENSITIES
    from gradtrace.estimation.traffic import Traffic
    from gradtrace.report.estimate_table import estimate_lines, estimate_table

    if model is None and (ledger is None or validate is not None or example is not None):
        raise InvalidValueError(
            "--model",
            expected="it, with --validate, with --example and without --ledger",
            got="none",
            remedy="pass e.g. --model recipes.mnist:model",
        )
    if (traffic is None) != (price is None):
        raise InvalidValueError("--traffic and --price", expected="both or neither", got="one")
    if validate is not None:
        named_target(validate, "--validate")
    opened = None if ledger is None else gt.Ledger.open(ledger)
    arrays, built = given_weights(weights, model)
    if built is None:
        assert opened is not None
        built = bare_layers(opened, arrays)
    found = gt.estimate(
        opened,
        built,
        densities=tuple(density or DENSITIES),
        by=by,
        granularity=granularity,
        tokens=tokens,
        validate=None if validate is None else lambda net: quality(validate, net),
        examples=examples,
        max_loss=max_loss,
        example=None if example is None else called(example, "--example"),
        traffic=None if traffic is None or price is None else Traffic(traffic, price),
    )
    show(as_json, found.to_json(), estimate_table(found), lines=estimate_lines(found))
