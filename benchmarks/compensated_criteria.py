"""Ranks criteria by what their masks cost once least squares has made up for what they drop.

Takes the trainings of benchmarks/criteria_search.py (what is there is not trained again), keeps single
weights at equal density in each layer, and compensates every mask from the same training batches, seen in
eval mode. What was measured is kept beside the training, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import platform
import sys
from copy import deepcopy
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "recipes")]

from search.setting import Setting  # noqa: E402
from tasks.every_task import EVERY_TASK  # noqa: E402
from tasks.task import Task  # noqa: E402
from tasks.training import read_run, trained  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.errors import UnknownNameError  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.table import Table  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402

TASKS = ("byte-text", "byte-text-large-start")
DENSITIES = (0.3, 0.2)
BATCHES = 20
SETTINGS = (
    Setting("magnitude"),
    Setting("wanda"),
    Setting("wanda", scope="row"),
    *(Setting("fisher", (("unit", "position"), ("exponent", a))) for a in (0.375, 0.5, 0.75, 1.0)),
    *(Setting("fisher", (("unit", "sample"), ("exponent", a))) for a in (0.375, 0.5)),
    *(Setting("fisher-step", (("exponent", a),)) for a in (0.375, 0.5, 1.0)),
)

Row = dict[str, Any]


def measured(task: Task, seed: int, folder: Path, steps: int) -> list[Row]:
    """Loss increases over dense, in nats, as masked and as compensated; one line of JSON each on disk."""
    trained(task, seed, folder, steps, lambda: None)
    net, ledger = read_run(task, folder)
    linear = [f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    path = folder / "compensated.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    found: list[Row] = [json.loads(line) for line in lines if line.endswith("\n")]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in found).encode(), "measures")
    known = {(row["criterion"], row["density"]) for row in found}
    dense = task.validate(net).loss
    moments = None
    with path.open("a") as file:
        for setting in SETTINGS:
            missing = [density for density in DENSITIES if (setting.label, density) not in known]
            if not missing:
                continue
            if moments is None:
                given = task.batches(seed + 1000, BATCHES)
                moments = gt.input_moments(net, (batch[0][:, :-1] for batch in given))
            scores = gt.score(ledger, net, by=setting.by, **dict(setting.options))
            for density in missing:
                chosen = {name: scores[name] for name in linear}
                mask = gt.select(chosen, density=density, scope=setting.scope)
                row = {
                    "task": task.name,
                    "seed": seed,
                    "criterion": setting.label,
                    "kind": setting.kind,
                    "density": density,
                    "masked": task.validate(gt.apply_mask_(deepcopy(net), mask)).loss - dense,
                    "compensated": task.validate(gt.compensate_(deepcopy(net), mask, moments)).loss - dense,
                }
                file.write(json.dumps(row) + "\n")
                file.flush()
                found.append(row)
    labels = {setting.label for setting in SETTINGS}
    return [row for row in found if row["criterion"] in labels and row["density"] in DENSITIES]


def ratio(rows: list[Row], what: str) -> float:
    """The least increase of a ledger-based criterion over the least of a statistic-based one."""
    least = {kind: min(row[what] for row in rows if row["kind"] == kind) for kind in ("ledger", "statistic")}
    return float(least["ledger"] / least["statistic"])


def means(rows: list[Row]) -> list[Row]:
    """One row for each task, criterion and density: means over the seeds."""
    places = dict.fromkeys((row["task"], row["criterion"], row["density"]) for row in rows)
    found = []
    for place in places:
        own = [row for row in rows if (row["task"], row["criterion"], row["density"]) == place]
        both = {what: fmean(row[what] for row in own) for what in ("masked", "compensated")}
        found.append({key: own[0][key] for key in ("task", "criterion", "kind", "density")} | both)
    return found


def ratios(rows: list[Row]) -> list[Row]:
    """Of each task and density: the ratio of every seed, and of the means over the seeds."""
    found = []
    for task, density in dict.fromkeys((row["task"], row["density"]) for row in rows):
        own = [row for row in rows if (row["task"], row["density"]) == (task, density)]
        for what in ("masked", "compensated"):
            seeds = {
                str(seed): ratio([row for row in own if row["seed"] == seed], what)
                for seed in dict.fromkeys(row["seed"] for row in own)
            }
            of_means = ratio(means(own), what)
            found.append(
                {"task": task, "density": density, "what": what, "seeds": seeds, "of_means": of_means}
            )
    return found


def table(task: str, rows: list[Row]) -> Table:
    """Masked -> compensated, for each criterion and density."""
    own = [row for row in means(rows) if row["task"] == task]
    cells = {(row["criterion"], row["density"]): row for row in own}
    lines = tuple(
        (
            name,
            *(f"{cells[name, at]['masked']:.3f} -> {cells[name, at]['compensated']:.3f}" for at in DENSITIES),
        )
        for name in dict.fromkeys(row["criterion"] for row in own)
    )
    title = f"{task}: loss increase over dense, as masked -> as compensated, single weights"
    return Table(title, ("criterion", *(f"density {at:g}" for at in DENSITIES)), lines)


def main(
    task: Annotated[list[str] | None, typer.Option(help="A byte-text task; again for more.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings a task.")] = 5,
    steps: Annotated[int, typer.Option(min=0, help="Steps a training; 0: what the task asks for.")] = 0,
    runs: Annotated[Path, typer.Option(help="Where trainings and measures are kept.")] = ROOT
    / "runs/criteria",
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/compensated_criteria.json",
) -> None:
    """Rank criteria by what their masks cost a byte-level transformer after least-squares compensation.

    Try `--task byte-text-small --seeds 1 --steps 100` first.
    """
    console = terminal()
    known = [name for name in EVERY_TASK if name.startswith("byte-text")]
    for name in task or []:
        if name not in known:
            raise UnknownNameError("task", expected=f"one of {', '.join(known)}", got=repr(name))
    rows: list[Row] = []
    for name, seed in product(task or TASKS, range(seeds)):
        one = EVERY_TASK[name]
        rows += measured(one, seed, runs / name / f"seed-{seed}", steps or one.steps)
        console.print(f"{name}, seed {seed}: measured")
    for name in dict.fromkeys(row["task"] for row in rows):
        table(name, rows).print(console)
    found = ratios(rows)
    for row in found:
        by_seed = ", ".join(f"{value:.2f}" for value in row["seeds"].values())
        console.print(
            f"{row['task']}, density {row['density']:g}, {row['what']}: best ledger-based over best "
            f"statistic-based {row['of_means']:.2f}, by seed {by_seed}"
        )
    result = {
        "command": " ".join(
            [
                "python benchmarks/compensated_criteria.py",
                *(f"--task {name}" for name in task or TASKS),
                f"--seeds {seeds}",
            ]
        ),
        "seeds": seeds,
        "ratios": found,
        "means": means(rows),
        "rows": rows,
        "machine": {"platform": platform.platform(), "python": platform.python_version()},
        "versions": {"gradtrace": version("gradtrace"), "torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}; trainings and measures are in {runs}.")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
