"""Mask and recover, or train small from scratch? Equal inference cost, equal total steps, byte-level LM.

Takes the byte-level transformer as benchmarks/tasks trains it (what is there is not trained again), masks its
linear layers in row groups in one shot by the default criterion, compensates, and goes on training with the
mask held on weights and optimizer state. Beside it stand the same model annealed in stages during those
steps, and a dense model of the same make, so narrow that a token costs as many multiplications, trained from
scratch for as many steps in all. What a pass takes in seconds is measured too.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from kept import once
from machine import installed, machine
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import byte_model  # noqa: E402
from recovered.comparison import SCRATCH, WAYS, Comparison  # noqa: E402
from tasks.byte_text import BYTE_TEXT  # noqa: E402
from tasks.training import trained  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.table import Table  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402

SEQUENCES = (1, 16)
SAID = {
    "dense": "dense",
    "masked": "row groups of 64, one shot",
    "compensated": "and compensated",
    "recovered": "and recovered",
    "staged": "annealed in stages",
    "similar": "16 similar rows, dense as teacher",
    SCRATCH: "narrow, from scratch",
}


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Held-out loss of everything that is compared, at its end."""
    ends = {name: fmean(row[name]["looks"][-1][1] for row in rows) for name in (*WAYS, SCRATCH)}
    return {
        "dense": fmean(row["dense"] for row in rows),
        "masked": fmean(row["recovered"]["masked"] for row in rows),
        "compensated": fmean(row["recovered"]["looks"][0][1] for row in rows),
        **ends,
    }


def wins(rows: list[dict[str, Any]], name: str) -> int:
    """In how many seeds that way ends with a lower loss than the narrow model from scratch."""
    return sum(row[name]["looks"][-1][1] < row[SCRATCH]["looks"][-1][1] for row in rows)


def table(found: dict[str, Any]) -> Table:
    losses, cells = found["means"], []
    for name, said in SAID.items():
        alike = "recovered" if name in ("masked", "compensated") else name
        took = (each[alike] for each in found["seconds_a_pass"].values())
        steps = found["settings"]["steps"] + (name in (*WAYS, SCRATCH)) * found["settings"]["recovery"]
        cells.append(
            (
                said,
                f"{steps:,}",
                f"{found['multiplications'][alike]:,}",
                " / ".join(f"{1000 * one:.1f}" for one in took),
                f"{losses[name]:.3f}",
                "" if name == "dense" else f"{losses[name] - losses['dense']:+.3f}",
                f"{found['wins'][name]}" if name in WAYS else "",
            )
        )
    heads = ("model", "steps in all", "multiplications", "ms", "nats a byte", "over dense", "wins")
    counts = " and ".join(map(str, SEQUENCES))
    note = (
        f"Means of {len(found['rows'])} seeds; multiplications a token; ms: a pass over {counts} full "
        f"contexts on one thread; narrow: {found['width']} wide; wins: seeds with a lower loss than that."
    )
    return Table(
        f"Density {found['settings']['density']:g}: recovery or a narrow model?", heads, tuple(cells), note
    )


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Trainings.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a training.")] = BYTE_TEXT.steps,
    recovery: Annotated[int, typer.Option(min=1, help="Steps after the mask.")] = 800,
    lr: Annotated[float, typer.Option(help="Largest learning rate of those.")] = 2e-3,
    density: Annotated[float, typer.Option(help="Share of each linear layer that is kept.")] = 0.3,
    runs: Annotated[Path, typer.Option(help="Trainings; those of criteria_search.py will do.")] = ROOT
    / "runs/criteria/byte-text",
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/annealing_text.json",
) -> None:
    """Recover masked byte-level transformers beside small dense ones of equal cost and equal steps.

    Some hours of one core; interrupted, the same command goes on. Try `--seeds 1 --steps 50 --recovery 20
    --runs /tmp/tiny --out /tmp/tiny.json` first.
    """
    torch.set_num_threads(1)
    console = terminal()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    settings: dict[str, Any] = {"text": byte_model.text().digest, "steps": steps}
    settings |= {"recovery": recovery, "lr": lr, "density": density}
    rows = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=seeds * (2 * steps + (len(WAYS) + 1) * recovery))
        step = partial(progress.advance, task)
        for seed in range(seeds):
            progress.update(task, description=f"seed {seed}")
            folder = runs / f"seed-{seed}"
            trained(BYTE_TEXT, seed, folder, steps, step)
            one = Comparison(seed, folder, recovery, lr, density)
            row: dict[str, Any] = {"seed": seed, "dense": byte_model.held_out(one.net)[0]}
            for name, way in WAYS.items():
                went = partial(one.went, way, step)
                row[name] = once(folder / f"recovered/{name}.json", settings | way._asdict(), went)
            row[SCRATCH] = once(
                folder / f"recovered/{SCRATCH}.json", settings, partial(one.from_scratch, step)
            )
            rows.append(row)
        progress.update(task, description="timing")
        seconds = {f"{count}": one.seconds(count) for count in SEQUENCES}
    found = {
        "command": " ".join(["python", "benchmarks/annealing_text.py", *sys.argv[1:]]),
        "settings": settings,
        "means": means(rows),
        "wins": {name: wins(rows, name) for name in WAYS},
        "width": one.width,
        "multiplications": one.multiplications({name: rows[-1][name]["density"] for name in WAYS}),
        "seconds_a_pass": seconds,
        "rows": rows,
        "versions": installed("gradtrace", "torch", "numpy", "scipy"),
        "machine": machine(),
    }
    table(found).print(console)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
