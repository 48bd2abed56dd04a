"""`gradtrace compare`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradtrace.commands.given_weights import given_weights
from gradtrace.commands.options import AsJson, Granularity, Model, Scope, Validate
from gradtrace.commands.output import progress, show
from gradtrace.errors import InvalidValueError

if TYPE_CHECKING:
    from gradtrace.comparison.comparison import Comparison
    from gradtrace.evidence.undertrained import RowUse
    from gradtrace.ledger.reader import Ledger

__all__ = ["compare"]


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="LEDGER WEIGHTS [LEDGER WEIGHTS]",
            help="A run's ledger and its final weights; the same of further seeds for intervals.",
        ),
    ],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="A criterion; repeat for several. Left out: all that LEDGER can answer."),
    ] = None,
    density: Annotated[list[float] | None, typer.Option(help="A density; repeat for several.")] = None,
    scope: Scope = "layer",
    granularity: Granularity = "element",
    model: Model = None,
    validate: Validate = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="PAGE.html", help="Write one HTML page here, and its figures as PAGE.json."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare criteria: on what their masks agree, what they cost and, with --validate, what they are worth.

    The controls random and shuffled always take part. Of one run there are no intervals.

    Example: `gradtrace compare runs/mnist/seed-0/mnist.ledger.zarr runs/mnist/seed-0/mnist.ckpt
    runs/mnist/seed-1/mnist.ledger.zarr runs/mnist/seed-1/mnist.ckpt
    --model recipes.mnist:model --validate recipes.mnist:validate --page compare.html`
    """
    import gradtrace as gt
    from gradtrace.comparison.compare import DENSITIES
    from gradtrace.comparison.contender import entrants
    from gradtrace.comparison.summary import (
        area_lines,
        best_lines,
        control_lines,
        left_out_lines,
        shown_density,
    )
    from gradtrace.evidence.calibration import calibration
    from gradtrace.report.comparison_tables import (
        area_table,
        collapse_lines,
        cost_table,
        decomposition_table,
        layers_table,
        quality_table,
    )
    from gradtrace.report.tables import agreement_table

    densities = tuple(density) if density else DENSITIES
    _check(runs, tuple(by or ()), densities, model, validate, page)
    pairs = [(gt.Ledger.open(runs[k]), Path(runs[k + 1])) for k in range(0, len(runs), 2)]
    total = sum(len(entrants(ledger, by, scope=scope)) * (1 + len(densities)) for ledger, _ in pairs)
    with progress(total) as step:
        each = []
        for ledger, weights in pairs:
            arrays, built = given_weights(weights, model)
            each.append(
                gt.compare(
                    ledger,
                    arrays if built is None else built,
                    None if validate is None else _asking(validate),
                    by=by or None,
                    densities=densities,
                    scope=scope,
                    granularity=granularity,
                    on_step=step,
                )
            )
        found = gt.Comparison.together(each)
    checked = {one.path: calibration(one) for one, _ in pairs if "decoy_sum" in one.accumulators}
    where = "{}: {}" if len(pairs) > 1 else "{1}"
    warnings = tuple(where.format(path, line) for path, one in checked.items() for line in one.findings)
    if page is not None:
        _write(page, found, pairs[0][0], warnings)
    k = shown_density(found)
    tables = [agreement_table(found.agreement(k), title=f"Agreement at density {densities[k]:g}")]
    last = min(range(len(densities)), key=lambda k: densities[k])
    tables += [decomposition_table(found, last)]
    tables += [layers_table(found, last)] if scope == "global" else []
    tables += [cost_table(found)]
    lines: tuple[str, ...] = ("Pass --model and --validate to see what each mask is worth.",)
    if found.has_quality:
        tables += [quality_table(found), area_table(found)]
        lines = (*best_lines(found), *area_lines(found), *control_lines(found))
    lines = (*warnings, *lines, *collapse_lines(found), *left_out_lines(found))
    data = found.to_json()
    if checked:
        data["calibration"] = [one.to_json() for one in checked.values()]
    show(as_json, data, *tables, lines=lines)


def _check(
    runs: Sequence[str],
    names: tuple[str, ...],
    densities: tuple[float, ...],
    model: str | None,
    validate: str | None,
    page: Path | None,
) -> None:
    # Everything that can be told before the wait.
    from gradtrace.commands.named_target import named_target
    from gradtrace.evidence.criterion import criterion

    if len(runs) % 2:
        raise InvalidValueError(
            "runs",
            expected="a ledger and its weights for each run",
            got=f"{len(runs)} paths, the last one alone",
            remedy="put each run's weights behind its ledger",
        )
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
    if page is not None and (page.suffix.lower() not in (".html", ".htm") or not page.parent.is_dir()):
        raise InvalidValueError(
            "--page",
            expected="an HTML file in a folder that exists",
            got=str(page),
            remedy="e.g. --page compare.html",
        )


def _asking(validate: str) -> Any:
    from gradtrace.commands.named_target import quality

    return lambda model: quality(validate, model)


def _write(page: Path, found: Comparison, first: Ledger, warnings: tuple[str, ...]) -> None:
    from gradtrace.errors import UnknownNameError
    from gradtrace.evidence.growth import growth
    from gradtrace.evidence.span_shares import span_shares
    from gradtrace.evidence.whole_file import write_whole
    from gradtrace.report.comparison_page import comparison_page
    from gradtrace.report.page import render

    try:
        grown = growth(first), span_shares(first)
    except UnknownNameError:  # the run recorded too little for it
        grown = None
    figures = page.with_suffix(".json")
    found.save(figures)
    told = comparison_page(found, grown, tokens=_tokens(first), warnings=warnings, json_name=figures.name)
    write_whole(page, render(told).encode(), "page")


def _tokens(ledger: Ledger) -> list[RowUse]:
    """The use of each embedding's rows, of those that the ledger can tell it of."""
    import gradtrace as gt
    from gradtrace.errors import UnknownNameError, UnsupportedError
    from gradtrace.evidence.undertrained import embeddings

    found = []
    for name in embeddings(ledger):
        with suppress(UnknownNameError, UnsupportedError):  # tied to a head, or nothing counted
            found.append(gt.undertrained(ledger, name))
    return found
