"""What recording costs a training step, beside what a user would pick instead, in one interleaved run.

A byte-level transformer (d=256, 4 layers, 2,048 tokens a step, AdamW) is trained once for each watcher, all
from the same weights on the same batches. They take turns: in every round each trains a block of 32 steps,
one after the other, in an order that changes from round to round. The whole step is timed from outside, so
what background threads take from the cores counts; each block holds one window of the recorder, end to end.
Figures are medians over the rounds of a block's time divided by that of the training without a recorder in
the same round. Of a watcher that multiplies the time of a step, one step a round is enough.

Committing an entry, once in 512 steps, is timed apart: from the end of a window until it is durable, with
nothing beside it, and its part of a step is added to the figure.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.optim import AdamW
from watchers import WATCHERS, Kind, Watch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))
from byte_model import CONTEXT, ByteModel, batches, loss_of  # noqa: E402

BLOCK = 32  # steps of one watcher in one round: one window of the recorder
LEAD = 48  # steps before the first block: the window ends in its middle, and first uses are over
WIDTH, ROWS = 256, 2048 // CONTEXT
COMMITS = 5


class Training:
    """One training and what watches it."""

    def __init__(self, kind: Kind, steps: int, folder: Path) -> None:
        torch.manual_seed(0)
        self.lead, self.turn = (1, 1) if kind.slow else (LEAD, BLOCK)
        self.model = ByteModel(WIDTH)
        self.optimizer = AdamW(self.model.parameters(), lr=3e-4)
        self.data = batches(0, steps, ROWS)
        folder.mkdir()
        self.watch: Watch = kind.watch(self.model, self.optimizer, folder)

    def step(self) -> float:
        """Train one step; return its time in seconds."""
        batch = next(self.data)
        began = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_of(self.model, batch)
        with self.watch.backward():
            loss.backward()  # type: ignore[no-untyped-call]
        self.watch.observe()
        self.optimizer.step()
        return time.perf_counter() - began

    def block(self, steps: int) -> float:
        """Train a block; return the time of a step in it, in seconds."""
        return sum(self.step() for _ in range(steps)) / steps

    def commits(self) -> list[float]:
        """Seconds from the end of a window until its entry is durable, a few times."""
        times = []
        for _ in range(COMMITS if self.watch.commit else 0):
            self.step()
            began = time.perf_counter()
            assert self.watch.commit is not None
            self.watch.commit()
            times.append(time.perf_counter() - began)
        return times


def measure(trainings: dict[str, Training], rounds: int) -> Iterator[tuple[str, str, float]]:
    """Yield (what, watcher, seconds of a step or a commit) as it is measured; leads are yielded too."""
    for name, training in trainings.items():
        yield "lead", name, training.block(training.lead)
    names = list(trainings)
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            yield "block", name, trainings[name].block(trainings[name].turn)
    for name, training in trainings.items():
        for seconds in training.commits():
            yield "commit", name, seconds


def rows_of(
    trainings: dict[str, Training], blocks: dict[str, list[float]], commits: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """One row a watcher: what it costs of a step of the training without one."""
    bare = median(blocks["none"])
    rows = []
    for name, training in trainings.items():
        ratios = [own / none for own, none in zip(blocks[name], blocks["none"], strict=True)]
        low, high = (ratios * 2)[0:2] if len(ratios) < 2 else quantiles(ratios, n=4)[::2]
        commit = median(commits[name]) / (training.watch.entry_steps * bare) if commits[name] else 0.0
        rows.append(
            {
                "watcher": name,
                "label": WATCHERS[name].label,
                "step_seconds": median(blocks[name]),
                "overhead": median(ratios) - 1 + commit,
                "quartiles": [low - 1 + commit, high - 1 + commit],
                "of_it_commits": commit,
                "target": WATCHERS[name].target,
            }
        )
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="cost of a step, as a share of the same step with no recorder")
    for heading in ("watched by", "ms a step", "overhead", "quartiles", "of it commits", "aim"):
        first = heading == "watched by"
        table.add_column(heading, justify="left" if first else "right", min_width=22 if first else None)
    for row in rows:
        low, high = row["quartiles"]
        aim = "" if row["target"] is None else f"{row['target']:.1%}"
        table.add_row(
            row["label"],
            f"{row['step_seconds'] * 1e3:.1f}",
            "" if row["watcher"] == "none" else f"{row['overhead']:+.2%}",
            "" if row["watcher"] == "none" else f"{low:+.2%} .. {high:+.2%}",
            f"{row['of_it_commits']:.2%}" if row["of_it_commits"] else "",
            aim + (" (missed)" if row["target"] is not None and row["overhead"] > row["target"] else ""),
        )
    return table


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(
    steps: Annotated[
        int, typer.Option(help="Steps timed for each watcher, a multiple of 32.", min=BLOCK)
    ] = 320,
    only: Annotated[
        str, typer.Option(help=f"Watchers to run, with commas: {', '.join(WATCHERS)}. none always runs.")
    ] = ",".join(WATCHERS),
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 leaves torch's choice.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = ROOT
    / "benchmarks/results/overhead.json",
) -> None:
    """Time a transformer's training step under every watcher, taking turns, and print what each costs.

    Run it on a machine that does nothing else; the quartiles tell how quiet it was. A watcher whose package
    is not installed is left out; `make bench` installs them all.

    A first look takes a minute or two:

      python benchmarks/overhead.py --steps 64 --only default,plain
    """
    console = Console()
    if threads:
        torch.set_num_threads(threads)
    asked = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := set(asked) - WATCHERS.keys():
        raise typer.BadParameter(f"no watcher {sorted(unknown)[0]!r}; there are {', '.join(WATCHERS)}")
    chosen = {}
    for name in dict.fromkeys(["none", *asked]):
        lacking = [package for package in WATCHERS[name].needs if find_spec(package) is None]
        if lacking:
            console.print(f"Left out, {lacking[0]} is not installed: {WATCHERS[name].label}", highlight=False)
        else:
            chosen[name] = WATCHERS[name]
    rounds = steps // BLOCK
    blocks: dict[str, list[float]] = {name: [] for name in chosen}
    commits: dict[str, list[float]] = {name: [] for name in chosen}
    with (
        TemporaryDirectory(prefix="overhead-") as folder,
        Progress(console=console, transient=True) as progress,
    ):
        task = progress.add_task("preparing", total=None)
        trainings = {
            name: Training(kind, LEAD + BLOCK * rounds + COMMITS, Path(folder) / name)
            for name, kind in chosen.items()
        }
        progress.update(task, total=sum(one.lead + one.turn * rounds for one in trainings.values()))
        for what, name, seconds in measure(trainings, rounds):
            training = trainings[name]
            advance = {"lead": training.lead, "block": training.turn, "commit": 0}[what]
            progress.update(task, advance=advance, description=f"{what}: {name}")
            if what != "lead":
                (blocks if what == "block" else commits)[name].append(seconds)
        for training in trainings.values():
            training.watch.close()
        rows = rows_of(trainings, blocks, commits)
    console.print(table_of(rows))
    figures = {
        "settings": {"block": BLOCK, "rounds": rounds, "width": WIDTH, "rows": ROWS, "context": CONTEXT},
        "parameters": sum(p.numel() for p in trainings["none"].model.parameters()),
        "machine": {
            "device": "cpu",
            "processor": processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(terse=True),
            "python": platform.python_version(),
        },
        "versions": {
            name: installed(name)
            for name in ("gradtrace", "torch", "numpy", "zarr", "wandb", "lightning", "backpack-for-pytorch")
        },
        "rows": rows,
        "seconds_of_a_step_by_round": blocks,
        "commit_seconds": commits,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"Written to {out}", highlight=False)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    typer.run(main)
