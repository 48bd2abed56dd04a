"""The command line: `gradtrace info | compare | plan | convert | criteria`.

Only typer is imported up here: `gradtrace --help` answers at once, and each command loads what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gradtrace.errors import GradtraceError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from gradtrace.evidence.mask import Mask
    from gradtrace.ledger.reader import Ledger
    from gradtrace.report.table import Table
    from gradtrace.structure.plan import Plan

__all__ = ["app", "main"]

DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)


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

LedgerPath = Annotated[
    Path, typer.Argument(metavar="LEDGER", help="The ledger that a training left, *.ledger.zarr.")
]
WeightsPath = Annotated[
    Path,
    typer.Argument(metavar="WEIGHTS", help="Final weights: Lightning checkpoint, state_dict or safetensors."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="PKG.MOD:FACTORY", help="Function that builds the module, no arguments."),
]
ValidateOption = Annotated[
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
Scope = Annotated[str, typer.Option(help="Spread the density per `layer`, or `global`ly.")]
Granularity = Annotated[
    str, typer.Option(help="Keep single `element`s, 16x16 `tile`s, or inputs of 64 `rows` at once.")
]
Tokens = Annotated[
    int, typer.Option(help="Rows of input a call (batch x sequence) that the plan is timed for.")
]
Refuse = Annotated[bool, typer.Option("--refuse/--no-refuse", help="Leave dense what would not be faster.")]


def _show(as_json: bool, data: Mapping[str, Any], *tables: Table, lines: tuple[str, ...] = ()) -> None:
    if as_json:
        typer.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    for table in tables:
        table.print(console)
    for line in lines:
        console.print(line, markup=False, highlight=False)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    # On standard error, so that standard output stays what was asked for.
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda what: bar.update(task, advance=1, description=what)


@app.command()
def criteria(as_json: AsJson = False) -> None:
    """List the criteria: how a dependency's evidence becomes a score.

    Example: `gradtrace criteria --json`
    """
    import gradtrace as gt
    from gradtrace.report.tables import criteria_table

    known = gt.criteria()
    rows = [{"name": c.name, "kind": c.kind, "description": c.description} for c in known]
    _show(as_json, {"criteria": rows}, criteria_table(known))


@app.command()
def info(ledger: LedgerPath, as_json: AsJson = False) -> None:
    """Show what a ledger recorded, and how much of each parameter never saw a nonzero gradient.

    Example: `gradtrace info runs/mnist/seed-0/mnist.ledger.zarr`
    """
    import gradtrace as gt
    from gradtrace.report.tables import ledger_table

    opened = gt.Ledger.open(ledger)
    _show(as_json, _facts(opened) if as_json else {}, ledger_table(opened))


def _facts(ledger: Ledger) -> dict[str, Any]:
    parameters = []
    for name, record in ledger.items():
        counts = {
            k: getattr(record, k) for k in ("steps", "missing", "zero", "nonfinite", "skipped", "windows")
        }
        events = record.events
        parameters.append(
            {"name": name, "shape": record.shape, "dependencies": events.size}
            | {"never_supported": int((events == 0).sum())}
            | counts
        )
    return {
        "path": str(ledger.path),
        "run_id": ledger.run_id,
        "steps": ledger.steps,
        "entries": [{"begin": e.begin, "end": e.end, "windows": e.windows} for e in ledger.entries],
        "accumulators": list(ledger.accumulators),
        "settings": dict(ledger.settings),
        "parameters": parameters,
    }


@app.command()
def compare(
    ledger: LedgerPath,
    weights: WeightsPath,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="A criterion; repeat for several. Left out: all.")
    ] = None,
    density: Annotated[list[float] | None, typer.Option(help="A density; repeat for several.")] = None,
    scope: Scope = "layer",
    granularity: Granularity = "element",
    model: ModelOption = None,
    validate: ValidateOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare criteria: on what their masks agree and, with --model and --validate, what each mask is worth.

    Example: `gradtrace compare runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt
    --model recipes.mnist:model --validate recipes.mnist:validate`
    """
    import gradtrace as gt
    from gradtrace.evidence.agreement import agreement
    from gradtrace.evidence.criterion import criterion
    from gradtrace.evidence.curves import Curves, quality_at_density
    from gradtrace.named_target import named_target
    from gradtrace.report.tables import agreement_table, quality_table, verdict_lines

    names = tuple(dict.fromkeys(by)) if by else tuple(c.name for c in gt.criteria())
    for name in names:
        criterion(name)
    densities = tuple(density) if density else DENSITIES
    for d in densities:
        if not 0 < d <= 1:
            raise InvalidValueError(
                "density", expected="a number in (0, 1]", got=repr(d), remedy="e.g. --density 0.3"
            )
    if (model is None) != (validate is None):
        raise InvalidValueError(
            "--model and --validate",
            expected="both or neither",
            got="one",
            remedy="leave both out for agreement only",
        )
    if validate is not None:
        named_target(validate, "--validate")  # a name that leads nowhere should not cost the wait
    opened = gt.Ledger.open(ledger)
    _, built, target = _weights(weights, model)
    measured = len(names) * len(densities) if built is not None else 0
    with _progress(len(names) * (1 + len(densities)) + measured) as step:
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
    _show(as_json, data, *tables, lines=lines)


def _weights(path: Path, model: str | None) -> tuple[dict[str, Any], nn.Module | None, Any]:
    # (arrays by name, the module when there is a factory, what `score` is to look at)
    from gradtrace.convert.weights_file import read_weights
    from gradtrace.named_target import built_model

    arrays = dict(read_weights(path))
    built = None if model is None else built_model(model, arrays)
    return arrays, built, (arrays if built is None else built)


def _evaluation(model: nn.Module, validate: str, step: Callable[[str], None]) -> Callable[[Mask], float]:
    from copy import deepcopy

    import gradtrace as gt
    from gradtrace.named_target import quality

    def evaluate(mask: Mask) -> float:
        masked = deepcopy(model)
        gt.apply_mask_(masked, mask)
        step("measuring quality")
        return quality(validate, masked)

    return evaluate


@app.command()
def plan(
    ledger: LedgerPath,
    weights: WeightsPath,
    by: By = None,
    density: Density = None,
    fdr: Fdr = None,
    scope: Scope = "layer",
    granularity: Granularity = "rows",
    tokens: Tokens = 512,
    refuse: Refuse = True,
    model: ModelOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here, as JSON.")] = None,
    mask_out: Annotated[Path | None, typer.Option(help="Write the mask here, as safetensors.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan the conversion: which layers become sub-operators, how fast they should be, and which stay dense.

    Without --model the plan is made from the shapes in the ledger alone. Nothing is converted.

    Example: `gradtrace plan runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt --density 0.3
    --out plan.json`
    """
    made, mask, _ = _planned(ledger, weights, by, density, fdr, scope, granularity, tokens, refuse, model)
    if mask_out is not None:
        mask.save(mask_out)
    if out is not None:
        made.save(out)
    from gradtrace.report.tables import plan_lines, plan_table

    _show(as_json, _plan_facts(made, mask), plan_table(made), lines=plan_lines(made))


def _planned(
    ledger: Path,
    weights: Path,
    by: str | None,
    density: float | None,
    fdr: float | None,
    scope: str,
    granularity: str,
    tokens: int,
    refuse: bool,
    model: str | None,
) -> tuple[Plan, Mask, nn.Module]:
    import gradtrace as gt
    from gradtrace.bare_layers import bare_layers
    from gradtrace.evidence.criterion import DEFAULT

    if (density is None) == (fdr is None):
        raise InvalidValueError(
            "--density and --fdr", expected="exactly one of them", remedy="e.g. --density 0.3"
        )
    opened = gt.Ledger.open(ledger)
    arrays, built, target = _weights(weights, model)
    scores = gt.score(opened, target, by=by or DEFAULT)
    mask = gt.select(scores, density=density, fdr=fdr, scope=scope, granularity=granularity)
    module = built if built is not None else bare_layers(opened, arrays)
    return gt.plan(module, mask, tokens=tokens, refuse=refuse), mask, module


def _plan_facts(plan: Plan, mask: Mask) -> dict[str, Any]:
    layers = {
        name: {
            "choice": layer.choice,
            "sub_operators": len(layer.sub_operators),
            "kept": float(layer.mask.mean()),
            "predicted_seconds": layer.predicted,
            "dense_seconds": layer.dense,
            "measured_speed": layer.measured,
            "reason": layer.reason,
        }
        for name, layer in plan.items()
    }
    return {"density": mask.density, "layers": layers, "provenance": plan.provenance}


@app.command()
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
    scope: Scope = "layer",
    granularity: Granularity = "rows",
    tokens: Tokens = 512,
    refuse: Refuse = True,
    validate: ValidateOption = None,
    as_json: AsJson = False,
) -> None:
    """Convert a trained model: plan, replace the layers that gain, verify each against its masked self, save.

    A converted layer must equal the masked dense one, or nothing is written.

    Example: `gradtrace convert runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt converted
    --density 0.5 --model recipes.mnist:model --validate recipes.mnist:validate`
    """
    from copy import deepcopy

    import torch

    import gradtrace as gt
    from gradtrace.named_target import named_target, quality
    from gradtrace.report.tables import plan_lines, plan_table

    if validate is not None:
        named_target(validate, "--validate")
    made, mask, dense = _planned(ledger, weights, by, density, fdr, scope, granularity, tokens, refuse, model)
    converted = deepcopy(dense)
    gt.convert_(converted, made)
    masked = deepcopy(dense)
    gt.apply_mask_(masked, made)
    generator = torch.Generator().manual_seed(0)
    for name in made.converted:
        batch = torch.randn(tokens, made[name].mask.shape[1], generator=generator)
        gt.verify(masked.get_submodule(name), converted.get_submodule(name), batch)
    found = (
        {}
        if validate is None
        else {
            "dense": quality(validate, dense),
            "masked": quality(validate, masked),
            "converted": quality(validate, converted),
        }
    )
    gt.save(converted, out)
    lines = [*plan_lines(made)]
    lines += [f"{what}: {value:.4g}" for what, value in found.items()]
    lines.append(f"{len(made.converted)} of {len(made)} layers converted and verified; saved to {out}")
    data = _plan_facts(made, mask) | {"out": str(out), "converted": made.converted, "quality": found or None}
    _show(as_json, data, plan_table(made), lines=tuple(lines))


def main() -> None:
    """Run the command line; the console script `gradtrace`."""
    app()


if __name__ == "__main__":
    main()
