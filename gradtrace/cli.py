"""The command line: `gradtrace info | assess | compare | explain | plan | convert | ...`.

Only typer is imported up here: `gradtrace --help` answers at once, and each command loads what it needs.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from gradtrace.commands.anneal import anneal
from gradtrace.commands.assess import assess
from gradtrace.commands.compare import compare
from gradtrace.commands.convert import convert
from gradtrace.commands.criteria import criteria
from gradtrace.commands.estimate import estimate
from gradtrace.commands.explain import explain
from gradtrace.commands.growth import growth
from gradtrace.commands.info import info
from gradtrace.commands.merge import merge
from gradtrace.commands.plan import plan
from gradtrace.commands.undertrained import undertrained
from gradtrace.errors import GradtraceError

__all__ = ["app", "main"]


class _OneLineErrors(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GradtraceError as error:
            from gradtrace.report.printable import printable

            typer.echo(f"error: {printable(str(error))}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Which weights did the training data really support, and what do they cost?\n\n"
    "Record a run with `Trainer(callbacks=[GradientLedger('run.ledger.zarr')])`, then, for example:\n\n"
    "`gradtrace info run.ledger.zarr`\n\n"
    "`gradtrace plan run.ledger.zarr run.ckpt --density 0.3`",
)

for command in (
    criteria,
    info,
    assess,
    growth,
    undertrained,
    compare,
    explain,
    estimate,
    anneal,
    plan,
    convert,
    merge,
):
    app.command()(command)


def main() -> None:
    """Run the command line; the console script `gradtrace`."""
    app()


if __name__ == "__main__":
    main()
