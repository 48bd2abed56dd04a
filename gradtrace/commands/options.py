"""Arguments and options that several commands share, with the words that `--help` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "By",
    "Density",
    "Fdr",
    "Granularity",
    "LedgerPath",
    "MaxLatency",
    "MaxLossIncrease",
    "Model",
    "Refuse",
    "Scope",
    "Tokens",
    "Validate",
    "WeightsPath",
]

# Text and no Path, which would change the "//" of a URL.
LedgerPath = Annotated[
    str,
    typer.Argument(
        metavar="LEDGER", help="The ledger that a training left: *.ledger.zarr, or s3://, gs://, az://."
    ),
]
WeightsPath = Annotated[
    Path,
    typer.Argument(metavar="WEIGHTS", help="Final weights: Lightning checkpoint, state_dict or safetensors."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="PKG.MOD:FACTORY", help="Function that builds the module, no arguments."),
]
Validate = Annotated[
    str | None,
    typer.Option(
        "--validate", metavar="PKG.MOD:FUNCTION", help="Function model -> number, larger is better."
    ),
]
By = Annotated[
    str | None, typer.Option("--by", help="Criterion (see `gradtrace criteria`); left out: the default.")
]
Density = Annotated[float | None, typer.Option(help="Share of the dependencies to keep, in (0, 1].")]
Fdr = Annotated[
    float | None, typer.Option(help="Instead: keep what is significant at this false discovery rate.")
]
MaxLatency = Annotated[
    float | None,
    typer.Option(help="Instead: keep as much as lets all linear layers together take so many seconds."),
]
MaxLossIncrease = Annotated[
    float | None,
    typer.Option(help="Instead: keep as little as lets --validate fall by no more than this."),
]
Scope = Annotated[str, typer.Option(help="Spread the density per `layer`, or `global`ly.")]
Granularity = Annotated[
    str, typer.Option(help="Keep single `element`s, 16x16 `tile`s, or inputs of 64 `rows` at once.")
]
Tokens = Annotated[
    int, typer.Option(help="Rows of input a call (batch x sequence) that the plan is timed for.")
]
Refuse = Annotated[bool, typer.Option("--refuse/--no-refuse", help="Leave dense what would not be faster.")]
