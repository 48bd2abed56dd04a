"""What recording costs a training step, beside what a user would pick instead, in one interleaved run.

A byte-level transformer (d=256, 4 layers, 2,048 tokens a step, AdamW) is trained once for each watcher, all
from the same weights on the same batches. They take turns step by step, in an order that changes from step
to step, so that a machine that grows slower or faster does so for all. Everything is timed from outside, and
what a step leaves to background threads is waited for within it: the recorder's is counted as if nothing ran
beside it. What the peers leave to processes of their own is let pass, and not counted.

Two figures come out. Whole steps: the mean time of a step divided by that of the same steps without a
recorder, with a bootstrapped 95 % interval; where single steps differ by a tenth, it takes thousands of them
to tell one per cent. In calls: what is spent in the recorder's calls, and in waiting for its threads, divided
by the rest of the same 32 steps, which hold one window from end to end; the median over such blocks, which is
sharp, for both were timed within the same seconds. To it are added, each measured apart in the same run, the
extra time of a step that is watched below the step, by the share of steps that are, and the processor time of
committing an entry, once in 512 steps: the training goes on while a commit waits for the disk. What recording
does to a step outside of its calls, by what it drives out of the caches, is in the whole steps alone.

The peers take part in the first steps alone, and one that multiplies the time of a step in a single one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from machine import installed, machine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.optim import AdamW
from watchers import WATCHERS, Kind, Watch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))
from byte_model import CONTEXT, ByteModel, batches, loss_of  # noqa: E402

BLOCK = 32  # one window of the recorder
LEAD = 48  # steps before the first block: the window ends in its middle, and first uses are over
WIDTH, ROWS = 256, 2048 // CONTEXT
COMMITS = 5
PAIRS = 8  # watched steps, each beside one that is not
RESAMPLES = 2000


class Training:
    """One training and what watches it."""

    def __init__(self, kind: Kind, steps: int, folder: Path) -> None:
        torch.manual_seed(0)
        self.lead, self.block = (0, 1) if kind.slow else (LEAD, BLOCK)
        self.steps = min(steps, kind.most or steps)
        self.rest = kind.rest
        self.model = ByteModel(WIDTH)
        self.optimizer = AdamW(self.model.parameters(), lr=3e-4)
        self.data = batches(0, LEAD + steps + 2 * PAIRS + COMMITS, ROWS)
        folder.mkdir()
        self.watch: Watch = kind.watch(self.model, self.optimizer, folder)

    def step(self) -> tuple[float, float]:
        """Train one step; return its time in seconds, and how much of it was spent in the watch's calls."""
        batch = next(self.data)
        began = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_of(self.model, batch)
        with self.watch.backward():
            loss.backward()  # type: ignore[no-untyped-call]
        called = time.perf_counter()
        self.watch.observe()
        done = time.perf_counter()
        self.optimizer.step()
        stepped = time.perf_counter()
        self.watch.settle()
        ended = time.perf_counter()
        time.sleep(self.rest)
        return ended - began, (done - called) + (ended - stepped)

    def watched_extra(self) -> list[float]:
        """Seconds by which a step that is watched below the step is longer than the one before it."""
        extra = []
        for _ in range(PAIRS if self.watch.watching else 0):
            plain, _ = self.step()
            assert self.watch.watching is not None
            with self.watch.watching():
                watched, _ = self.step()
            extra.append(watched - plain)
        return extra

    def commits(self) -> list[float]:
        """Processor seconds from the end of a window until its entry is durable, a few times."""
        times = []
        for _ in range(COMMITS if self.watch.commit else 0):
            self.step()
            began = time.process_time()
            assert self.watch.commit is not None
            self.watch.commit()
            times.append(time.process_time() - began)
        return times


@dataclass
class Times:
    """Seconds measured of one training."""

    steps: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    extra: list[float] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)


def measure(trainings: dict[str, Training], steps: int, times: dict[str, Times]) -> Iterator[str]:
    """Fill `times`; yield a word on each step that is over."""
    for name, training in trainings.items():
        for _ in range(training.lead):
            training.step()
            yield f"lead: {name}"
    for step in range(steps):
        names = [name for name, training in trainings.items() if step < training.steps]
        for place in range(len(names)):
            name = names[(place + step) % len(names)]
            whole, calls = trainings[name].step()
            times[name].steps.append(whole)
            times[name].calls.append(calls)
            yield f"step {step + 1}: {name}"
    for name, training in trainings.items():
        times[name].extra = training.watched_extra()
        times[name].commits = training.commits()
        yield f"commits: {name}"


def in_calls(own: Times, share: float, entry_steps: int) -> tuple[float, float]:
    """The part of a step that is spent on recording, by what was timed in the same seconds.

    The second figure is the part of it that goes into the steps watched below the step.
    """
    blocks = [slice(begin, begin + BLOCK) for begin in range(0, len(own.steps) - BLOCK + 1, BLOCK)]
    rest = [sum(own.steps[part]) - sum(own.calls[part]) for part in blocks]
    calls = median(sum(own.calls[part]) / left for part, left in zip(blocks, rest, strict=True))
    bare = median(rest) / BLOCK
    watched = share * median(own.extra) / bare if own.extra else 0.0
    return calls + watched + median(own.commits) / entry_steps / bare, watched


def whole_steps(own: Sequence[float], none: Sequence[float]) -> tuple[float, list[float]]:
    """How much longer steps took than the same ones with no recorder, and its 95 % interval."""
    own_, none_ = np.asarray(own), np.asarray(none)[: len(own)]
    drawn = np.random.default_rng(0).integers(0, len(own_), (RESAMPLES, len(own_)))
    resampled = own_[drawn].mean(1) / none_[drawn].mean(1) - 1
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(own_.mean() / none_.mean() - 1), [float(low), float(high)]


def rows_of(trainings: dict[str, Training], times: dict[str, Times]) -> list[dict[str, Any]]:
    """One row a watcher: what it costs of a step of the training without one."""
    rows = []
    for name, training in trainings.items():
        own, watch = times[name], training.watch
        commits = median(own.commits) / watch.entry_steps if own.commits else 0.0
        share = watch.watched_share()
        calls, below = in_calls(own, share, watch.entry_steps) if own.commits else (None, None)
        whole, interval = whole_steps(own.steps, times["none"].steps)
        rows.append(
            {
                "watcher": name,
                "label": WATCHERS[name].label,
                "steps": len(own.steps),
                "step_seconds": fmean(own.steps),
                "in_calls": calls,
                "below_the_step": below if own.extra else None,
                "whole_steps": whole,
                "interval": interval,
                "watched_share": share,
                "watched_extra_seconds": median(own.extra) if own.extra else None,
                "commit_seconds_a_step": commits,
                "target": WATCHERS[name].target,
            }
        )
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="cost of a step, as a share of the same step with no recorder")
    for heading in ("watched by", "ms a step", "in calls", "of it below", "whole steps", "95 %", "aim"):
        first = heading == "watched by"
        table.add_column(heading, justify="left" if first else "right", min_width=22 if first else None)
    for row in rows:
        low, high = row["interval"]
        none, calls, aim = row["watcher"] == "none", row["in_calls"], row["target"]
        table.add_row(
            row["label"],
            f"{row['step_seconds'] * 1e3:.1f}",
            "" if calls is None else f"{calls:.2%}",
            "" if row["below_the_step"] is None else f"{row['below_the_step']:.2%}",
            "" if none else f"{row['whole_steps']:+.1%}",
            "" if none else f"{low:+.1%} .. {high:+.1%}",
            "" if aim is None else f"{aim:.1%}" + (" (missed)" if calls is None or calls > aim else ""),
        )
    return table


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

    Run it on a machine that does nothing else; the interval tells how quiet it was. A watcher whose package
    is not installed is left out; `make bench` installs them all.

    A first look takes a minute or two:

      python benchmarks/overhead.py --steps 64 --only default,plain

    Evidence below the step alone, beside no recorder and the default one:

      python benchmarks/overhead.py --only default,below,samples --out benchmarks/results/overhead_below.json
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
    steps = steps // BLOCK * BLOCK
    times = {name: Times() for name in chosen}
    with (
        TemporaryDirectory(prefix="overhead-") as folder,
        Progress(console=console, transient=True) as progress,
    ):
        task = progress.add_task("preparing", total=None)
        trainings = {name: Training(kind, steps, Path(folder) / name) for name, kind in chosen.items()}
        progress.update(task, total=sum(one.lead + one.steps + 1 for one in trainings.values()))
        for word in measure(trainings, steps, times):
            progress.update(task, advance=1, description=word)
        rows = rows_of(trainings, times)
        for training in trainings.values():
            training.watch.close()
    console.print(table_of(rows))
    figures = {
        "settings": {"block": BLOCK, "steps": steps, "width": WIDTH, "rows": ROWS, "context": CONTEXT},
        "parameters": sum(p.numel() for p in trainings["none"].model.parameters()),
        "machine": {
            "device": "cpu",
            **machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": installed(
            "gradtrace", "torch", "numpy", "zarr", "wandb", "lightning", "backpack-for-pytorch"
        ),
        "rows": rows,
        "seconds": {
            name: {what: [round(one, 6) for one in found] for what, found in asdict(own).items()}
            for name, own in times.items()
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"Written to {out}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
