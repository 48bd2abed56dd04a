"""Compare criteria on the trained MLPs, and dense with decomposed; write JSON, PNG and HTML."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from criteria_compared import AGREE_AT, CRITERIA, DENSITIES, Compared, compared, together
from mnist import run_folders
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from side_by_side import BATCHES, side_by_side, side_by_side_table
from story import AGREEMENT, NEVER, QUALITY, ROWS, SPEED, STRUCTURE, findings, story

import gradtrace as gt
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.agreement_plot import agreement_plot
from gradtrace.report.heatmaps import heatmaps
from gradtrace.report.latency_plot import latency_plot
from gradtrace.report.overview import overview
from gradtrace.report.page import render
from gradtrace.report.quality_plot import quality_plot
from gradtrace.report.tables import agreement_table, never_supported_table, plan_table, quality_table
from gradtrace.report.terminal import terminal


def needed(found: list[Path], runs: Path, script: str) -> list[Path]:
    if not found:
        raise InvalidValueError(
            "runs",
            expected=f"what {script} leaves",
            got=str(runs),
            remedy=f"run python recipes/{script} first",
        )
    return found


def every_run(folders: list[Path]) -> list[Compared]:
    console = terminal()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        steps = len(folders) * len(CRITERIA) * (1 + 2 * len(DENSITIES))
        task = progress.add_task("comparing", total=steps)
        return [compared(run, lambda: progress.advance(task)) for run in folders]


def main(
    runs: Annotated[Path, typer.Option(help="What train.py left: RUNS/seed-0, RUNS/seed-1, ...")] = Path(
        "runs/mnist"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder for the results; left out: RUNS/compare.")] = None,
) -> None:
    """Compare every criterion over all seeds, and what convert.py made of a seed with its dense model.

    Writes OUT/compare.json, OUT/compare.png and OUT/compare.html, one page that needs nothing else, with each
    of its pictures beside it. Masks are one shot: nothing is trained or compensated afterwards.
    """
    folders = needed([run for run in run_folders(runs) if (run / "mnist.ckpt").is_file()], runs, "train.py")
    ready = [run for run in folders if (run / "converted").exists() and (run / "plan.json").is_file()]
    converted = needed(ready, runs, "convert.py")[0]

    each = every_run(folders)
    found = together(each)
    plan = gt.Plan.load(converted / "plan.json")
    facts = side_by_side(converted, plan)

    tables = {
        NEVER: never_supported_table(found.never),
        QUALITY: quality_table(found.by_element, title="Accuracy, single weights kept"),
        ROWS: quality_table(found.by_rows, title="Accuracy, inputs kept for 64 outputs at once"),
        AGREEMENT: agreement_table(found.agreement, title=f"Agreement of the masks at density {AGREE_AT:g}"),
        STRUCTURE: plan_table(plan),
        SPEED: side_by_side_table(plan, facts),
    }
    said = findings(found, plan, facts)
    console = terminal()
    for section, table in tables.items():
        table.print(console)
        for line in said[section]:
            console.print(line)
        if said[section]:
            console.print()

    out = out or runs / "compare"
    out.mkdir(parents=True, exist_ok=True)
    milliseconds = {
        f"batch {size}": {name: at[f"latency at batch {size}"]["median"] * 1e3 for name, at in facts.items()}
        for size in BATCHES
    }
    accuracy = "held-out accuracy"
    pictures = {
        QUALITY: quality_plot(found.by_element, ylabel=accuracy),
        ROWS: quality_plot(found.by_rows, ylabel=accuracy),
        AGREEMENT: agreement_plot(found.agreement),
        STRUCTURE: heatmaps(plan),
        SPEED: latency_plot(milliseconds),
    }
    for name, png in pictures.items():
        write_whole(out / f"{name}.png", png, "picture")
    whole = overview(found.by_element, found.by_rows, plan, ylabel=accuracy)
    write_whole(out / "compare.png", whole, "picture")
    results = {
        "runs": [str(run) for run in folders],
        "quality": {"element": found.by_element.to_json(), "rows": found.by_rows.to_json()},
        "agreement": {"density": AGREE_AT} | found.agreement.to_json(),
        "decided_by_lot": {"density": AGREE_AT, "runs": [one.ties for one in each]},
        "never_supported": {
            "together": found.never.to_json(),
            "runs": [one.never.to_json() for one in each],
        },
        "side_by_side": {"run": str(converted)} | facts,
    }
    write_whole(
        out / "compare.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode(), "results"
    )
    page = story(len(folders), found, facts, said, tables, pictures)
    write_whole(out / "compare.html", render(page).encode(), "page")
    console.print(f"Written: {out / 'compare.html'}, {out / 'compare.json'}, {out / 'compare.png'}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
