"""Compare criteria on trained MLPs over several seeds, and dense with decomposed; write HTML and JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from criteria_compared import STEPS, Compared, compared, together
from mnist import EPOCHS, batches, digits, run_folders
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from side_by_side import side_by_side
from story import ACCURACY, story
from train import train

import gradtrace as gt
from gradtrace.evidence.growth import growth
from gradtrace.evidence.span_shares import span_shares
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.overview import overview
from gradtrace.report.page import Section, render
from gradtrace.report.terminal import terminal


def bar() -> Progress:
    console = terminal()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)


def trained_runs(runs: Path, seeds: int) -> list[Path]:
    """The folders of train.py, or of `seeds` trainings made now where there are none."""
    found = [run for run in run_folders(runs) if (run / "mnist.ckpt").is_file()]
    if found:
        return found
    digits()
    with bar() as progress:
        progress.add_task("training", total=seeds * EPOCHS * len(batches(seed=0)))
        for seed in range(seeds):
            folder = runs / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            train(seed, folder, EPOCHS, 0.01, progress)
            found.append(folder)
    return found


def every_run(folders: list[Path]) -> Compared:
    with bar() as progress:
        task = progress.add_task("comparing", total=len(folders) * STEPS)

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what)

        return together([compared(run, step) for run in folders])


def show(sections: tuple[Section, ...]) -> None:
    console = terminal()
    for section in sections:
        for table in section.tables:
            table.print(console)
        for line in section.findings:
            console.print(line)
        if section.findings:
            console.print()


def main(
    runs: Annotated[Path, typer.Option(help="Where the runs are: RUNS/seed-0, RUNS/seed-1, ...")] = Path(
        "runs/mnist"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder for the results; left out: RUNS/compare.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many to train where RUNS holds none.")] = 3,
) -> None:
    """Which criterion keeps the right weights? Compare them on every seed in RUNS.

    Two minutes on two cores. Where RUNS holds no run yet, three seeds are trained first (train.py trains
    five); with a run that convert.py converted, it is timed beside its dense model, too. With one seed there
    are no intervals. Masks are one shot: nothing is trained or compensated afterwards.

    Writes OUT/compare.html, one page that needs nothing else, OUT/compare.json with all of its figures and,
    with a converted run, OUT/compare.png. The same for your own runs, on one line, in the terminal:

        gradtrace compare LEDGER WEIGHTS LEDGER WEIGHTS --model pkg.mod:factory --validate pkg.mod:function
            --page compare.html

    Try `python recipes/compare.py --runs runs/quick --seeds 2`; the default is runs/mnist.
    """
    folders = trained_runs(runs, seeds)
    ready = [run for run in folders if (run / "converted").exists() and (run / "plan.json").is_file()]
    found = every_run(folders)
    first = gt.Ledger.open(folders[0] / "mnist.ledger.zarr")
    converted = None
    if ready:
        plan = gt.Plan.load(ready[0] / "plan.json")
        converted = plan, side_by_side(ready[0], plan)
    page = story(found, (growth(first), span_shares(first)), converted)
    show(page.sections)

    out = out or runs / "compare"
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "runs": [str(run) for run in folders],
        "element": found.by_element.to_json(),
        "rows": found.by_rows.to_json(),
        "never_supported": found.never.to_json(),
        "side_by_side": None if converted is None else {"run": str(ready[0])} | converted[1],
    }
    figures = json.dumps(results, indent=1, allow_nan=False) + "\n"
    write_whole(out / "compare.json", figures.encode(), "results")
    write_whole(out / "compare.html", render(page).encode(), "page")
    written = [out / "compare.html", out / "compare.json"]
    if converted is not None:
        whole = overview(found.by_element, found.by_rows, converted[0], ylabel=ACCURACY)
        write_whole(out / "compare.png", whole, "picture")
        written.append(out / "compare.png")
    terminal().print("Written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
