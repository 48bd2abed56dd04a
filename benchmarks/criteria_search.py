"""Searches for the ledger-based criterion that is never much worse than the best statistic-based one.

Trains the searched tasks, measures every setting of every criterion on each (one shot: what a mask drops is
zeroed, no recovery, no compensation; equal density in every layer), and ranks the settings by their worst
regret. What was trained and measured is kept, so an interrupted search goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "recipes")]

from search.measuring import DENSE, Measure, measured  # noqa: E402
from search.regret import Cell, cells_of, increases_of, records_of  # noqa: E402
from search.setting import Setting, candidates  # noqa: E402
from search.tables import judged_table, records_table, task_table  # noqa: E402
from tasks.every_task import EVERY_TASK  # noqa: E402
from tasks.task import Task  # noqa: E402
from tasks.training import trained  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.errors import InvalidValueError, UnknownNameError  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402

IN_A_TABLE = 5


def chosen_tasks(names: list[str], judge: str) -> list[Task]:
    """Those named, or the searched ones; all of them where one setting is judged."""
    for name in names:
        if name not in EVERY_TASK:
            raise UnknownNameError("task", expected=f"one of {', '.join(EVERY_TASK)}", got=repr(name))
    tasks = [task for task in EVERY_TASK.values() if task.name in names or not names]
    if judge:
        return tasks
    unseen = [task.name for task in tasks if not task.searched]
    if names and unseen:
        raise InvalidValueError(
            "task",
            expected="tasks to search on",
            got=", ".join(unseen),
            remedy="judge one setting with --judge",
        )
    return [task for task in tasks if task.searched]


def chosen_settings(names: list[str]) -> list[Setting]:
    """All of them, or those named beside all statistics and controls."""
    every = candidates()
    if not names:
        return every
    for name in names:
        if name not in {one.label for one in every}:
            raise UnknownNameError(
                "setting", expected="the name of one in the search's table", got=repr(name)
            )
    return [one for one in every if one.label in names or one.kind != "ledger"]


def finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(
    task: Annotated[
        list[str] | None, typer.Option(help="A task; again for more. Left out: all searched.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="A ledger-based setting; again for more. Left out: all of them."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings a task.")] = 5,
    steps: Annotated[int, typer.Option(min=0, help="Steps a training; 0: what the task asks for.")] = 0,
    judge: Annotated[
        str, typer.Option(help="Judge this one setting, on unseen tasks too; search nothing.")
    ] = "",
    runs: Annotated[Path, typer.Option(help="Where trainings and measures are kept.")] = ROOT
    / "runs/criteria",
    out: Annotated[
        Path | None, typer.Option(help="Where the figures go; left out: benchmarks/results.")
    ] = None,
) -> None:
    """Search for the criterion that is never much worse than the best that final weights can give.

    Tasks to search on: image-mlp, image-convolution, sparse-groups, byte-text-small, byte-text,
    byte-text-large-start; function-home and function-table are left for the judgement of what was
    chosen. Begin with a quick one:

        python benchmarks/criteria_search.py --task image-mlp --seeds 2

    and go on with the same command, or with more seeds: what is there is not done again. Where a full
    search takes too long, name the settings to look at (--setting "fisher-step exponent=0.5"). Then

        python benchmarks/criteria_search.py --judge "fisher-step exponent=0.5"
    """
    console = terminal()
    tasks, settings = chosen_tasks(task or [], judge), chosen_settings([judge] if judge else setting or [])
    kinds = {one.label: one.kind for one in settings}
    cells: list[Cell] = []
    dense: dict[str, list[Measure]] = {}
    left_out: dict[str, str] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for one in tasks:
            length, found = steps or one.steps, []
            for seed in range(seeds):
                folder = runs / one.name / f"seed-{seed}"
                bar = progress.add_task(f"{one.name}, seed {seed}: training", total=length)
                step = partial(progress.advance, bar)
                trained(one, seed, folder, length, step)
                progress.update(bar, description=f"{one.name}, seed {seed}", total=len(settings), completed=0)
                some, missing = measured(one, seed, folder, settings, step)
                progress.remove_task(bar)
                found.append([row for row in some if row.setting in kinds or row.setting == DENSE])
                left_out |= missing
                loss = next(row.loss for row in some if row.setting == DENSE)
                console.print(f"{one.name}, seed {seed}: dense {loss:.4f}")
            dense[one.name] = [row for run in found for row in run if row.setting == DENSE]
            mean = fmean(row.loss for row in dense[one.name])
            cells += cells_of(one.name, increases_of(found), kinds, mean)

    records = records_of(cells, kinds)
    best = [record.setting for record in records if record.kind == "ledger"][:IN_A_TABLE]
    rest = [
        name for name in kinds if kinds[name] != "ledger" or name.startswith(("displacement", "movement"))
    ]
    for one in tasks:
        task_table(one.name, cells, [*best, *rest]).print(console)
    records_table(records).print(console)
    if judge:
        judged_table(judge, cells).print(console)
    for label, why in left_out.items():
        if "unit=" not in label:
            console.print(f"left out: {label}: {why}")
    below = sum("unit=" in label for label in left_out)
    if below:
        console.print(f"left out: {below} settings on evidence below the step, which these ledgers lack")

    out = out or ROOT / "benchmarks/results" / ("criteria_judged.json" if judge else "criteria_search.json")
    result = {
        "seeds": seeds,
        "steps": {one.name: steps or one.steps for one in tasks},
        "machine": {"torch": torch.__version__, "python": platform.python_version()},
        "judged": judge or None,
        "dense": {name: [asdict(row) for row in rows] for name, rows in dense.items()},
        "records": [asdict(record) for record in records],
        "cells": [asdict(cell) | {"relative": cell.relative, "holds": cell.holds} for cell in cells],
        "left_out": left_out,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(finite(result), indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}; trainings and measures are in {runs}.")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
