"""`gradtrace anneal`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradtrace.commands.options import AsJson, By, Granularity, LedgerPath, WeightsPath
from gradtrace.commands.output import show

if TYPE_CHECKING:
    from torch import nn

    from gradtrace.convert.annealed import Trial

__all__ = ["anneal"]


def anneal(
    ledger: LedgerPath,
    weights: WeightsPath,
    out: Annotated[
        Path, typer.Argument(metavar="MASK", help="Where the mask goes, as safetensors; replaced if there.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="PKG.MOD:FACTORY", help="Function that builds the module, no arguments."
        ),
    ],
    validate: Annotated[
        str,
        typer.Option(
            "--validate", metavar="PKG.MOD:FUNCTION", help="Function model -> number, larger is better."
        ),
    ],
    max_loss_increase: Annotated[
        float, typer.Option(help="By how much that number may fall, in its own units.")
    ],
    by: By = None,
    granularity: Granularity = "rows",
    stages: Annotated[int, typer.Option(help="In how many equal parts the budget is spent.")] = 8,
    compensate: Annotated[
        bool,
        typer.Option(
            "--compensate/--no-compensate",
            help='Refit each trial by least squares, from a ledger recorded with below=("inputs", "gram").',
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find how much of each layer can go within a budget of quality: no training, no density to guess.

    Drops a little more in stages, asks --validate after each trial, and backs off in the layers that cost
    too much. The mask never costs more than the budget. It asks often: let --validate use few batches.

    What to do with the mask: `gradtrace.Mask.load`, then `gradtrace.plan` and `convert_`; after --compensate
    first `gradtrace.compensate_` from the same ledger.

    Example: `gradtrace anneal runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt
    mask.safetensors --max-loss-increase 0.01 --model recipes.mnist:model --validate recipes.mnist:validate`
    """
    import gradtrace as gt
    from gradtrace.commands.given_weights import given_weights
    from gradtrace.commands.named_target import named_target, quality
    from gradtrace.evidence.criterion import DEFAULT
    from gradtrace.evidence.whole_file import checked_path
    from gradtrace.report.annealed_table import annealed_lines, annealed_table

    named_target(validate, "--validate")
    checked_path(out, "MASK")
    opened = gt.Ledger.open(ledger)
    _, built = given_weights(weights, model)
    assert built is not None

    def loss(net: nn.Module) -> float:
        return -quality(validate, net)

    with _told(stages) as told:
        found = gt.anneal(
            built,
            opened,
            validate=loss,
            max_loss_increase=max_loss_increase,
            by=by or DEFAULT,
            granularity=granularity,
            inputs=opened if compensate else None,
            stages=stages,
            on_trial=told,
        )
    found.mask.save(out)
    lines = (*annealed_lines(found), f"Mask written to {out}.")
    show(as_json, found.to_json() | {"out": str(out)}, annealed_table(found), lines=lines)


@contextmanager
def _told(stages: int) -> Iterator[Callable[[Trial], None]]:
    """A bar of stages on standard error, which says what each trial cost."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gradtrace.report.terminal import terminal

    console = terminal(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("dense", total=stages)

        def told(trial: Trial) -> None:
            said = f"cost {trial.increase:+.4g}, may {trial.allowed:.4g}"
            bar.update(task, completed=trial.stage - 1, description=said)

        yield told
