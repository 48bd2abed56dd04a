"""How close a decomposed layer comes to the time that its density promises, beside dense and its peers.

For every shape, number of threads and number of tokens, all layers and peers are called in turns, once in
every round, in an order that changes from round to round: whatever else the machine does falls on all alike.
What is short is called once more before each call that counts. A speed is the median over the rounds of the
dense layer's time divided by the layer's own in the same round; its share is speed times density, 1 where
time is proportional to what is computed. What takes long is called twice only.

A case counts where the dense layer takes at least 50 operator calls: below that, calling is what is measured.
For each case the planner is asked as a user would ask it, `gradtrace.plan` with the case's mask. The roofline
is the time that the machine needs for the FLOPs or the bytes (x, weights and result, once each) of the layer,
whichever is longer, at the rates that it was measured to reach, at the start or between the settings; the
share is that over the median.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import torch
import typer
from machine import installed, machine
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from routed.cases import CASES, SHAPES, Layer, layer_of
from routed.ceilings import Ceilings, measured_ceilings
from routed.judging import judged
from routed.peers import peers_of
from routed.picture import draw
from torch import nn
from torch.nn import functional
from turns import Rounds, Timed, in_turns, ratios, spread

import gradtrace as gt
from gradtrace.convert.timing import cost_table
from gradtrace.kernels.routed_linear_cpu import compiled_products

ROOT = Path(__file__).resolve().parents[1]
TOKENS = (1, 16, 512)
OPERATORS = 50  # operator calls that a dense layer has to take to count


class Setting:
    """One shape, number of tokens and number of threads."""

    def __init__(self, layers: list[Layer], peers: list[Any], tokens: int, threads: int) -> None:
        self.layers, self.tokens, self.threads = layers, tokens, threads
        self.outputs, self.inputs = layers[0].mask.shape
        self.x = torch.randn(tokens, self.inputs)
        dense = layers[0].dense
        self.functions: dict[str, Timed] = {
            "dense": lambda: functional.linear(self.x, dense.weight, dense.bias)
        }
        for number, (layer, calls) in enumerate(zip(layers, peers, strict=True)):
            self.functions[f"{number} routed"] = partial(layer.routed, self.x)
            for name, call in calls(self.x).items():
                self.functions[f"{number} {name}"] = call

    def rows(self, taken: Rounds, ceilings: Ceilings) -> Iterator[dict[str, Any]]:
        dense = spread(taken["dense"])
        table = cost_table(torch.device("cpu"), torch.float32, self.tokens)
        for number, layer in enumerate(self.layers):
            prefix = f"{number} "
            own = {key.removeprefix(prefix): of for key, of in taken.items() if key.startswith(prefix)}
            speeds = ratios(taken["dense"], own["routed"])
            weights, density = layer.routed.weight.numel(), layer.case.density
            moved = 4 * (weights + self.tokens * (self.inputs + self.outputs))
            bound = ceilings.bound(2.0 * weights * self.tokens, moved)
            seconds = {"dense": dense, **{name: spread(times) for name, times in own.items()}}
            yield {
                "inputs": self.inputs,
                "outputs": self.outputs,
                "case": layer.case.name,
                "density": density,
                "tokens": self.tokens,
                "threads": self.threads,
                "in_grid": layer.case.in_grid,
                "counted": dense["median"] >= OPERATORS * ceilings.one_operator,
                "speed": median(speeds),
                "speed_quartiles": quantiles(speeds, n=4, method="inclusive")[::2],
                "share": median(speeds) * density,
                "times": {
                    name: median(ratios(times, own["routed"]))
                    for name, times in own.items()
                    if name != "routed"
                },
                "roofline": bound / seconds["routed"]["median"],
                "bound_seconds": bound,
                "predicted": table.predict_sub_operators(layer.parts, self.inputs, self.outputs),
                "predicted_dense": table.predict_dense(self.inputs, self.outputs),
                "planner": verdict(layer, self.tokens),
                "seconds": seconds,
            }


def verdict(layer: Layer, tokens: int) -> dict[str, str]:
    """What a user's plan says of this layer."""
    planned = gt.plan(nn.Sequential(layer.dense), {"0.weight": layer.mask}, tokens=tokens)["0"]
    return {"choice": planned.choice, "reason": planned.reason}


def check(layer: Layer) -> None:
    """A time is worth nothing where the result is wrong."""
    x = torch.randn(33, layer.mask.shape[1], dtype=torch.float64)
    masked = layer.dense.weight.double() * torch.from_numpy(layer.mask)
    expected = functional.linear(x, masked, layer.dense.bias.double())
    torch.testing.assert_close(layer.routed(x.float()).double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def measure(
    shapes: tuple[tuple[int, int], ...], seconds: float, step: Callable[[str], object]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows, and the ceilings by threads; `step` is told what comes next."""
    rows: list[dict[str, Any]] = []
    step("ceilings")
    ceilings = {}
    for threads in counts():
        torch.set_num_threads(threads)
        ceilings[threads] = measured_ceilings()
    for inputs, outputs in shapes:
        torch.set_num_threads(1)
        layers = [layer_of(case, inputs, outputs) for case in CASES]
        for layer in layers:
            check(layer)
        peers = [peers_of(layer) for layer in layers]
        for threads in counts():
            torch.set_num_threads(threads)
            for tokens in TOKENS:
                step(f"{inputs} to {outputs}, {tokens} tokens, {threads} threads")
                ceilings[threads] = ceilings[threads].or_better(measured_ceilings(0.2))
                setting = Setting(layers, peers, tokens, threads)
                rows += setting.rows(in_turns(setting.functions, seconds), ceilings[threads])
    return rows, {str(threads): one.to_json() for threads, one in ceilings.items()}


def counts() -> tuple[int, ...]:
    return (1, 2) if (os.cpu_count() or 1) > 1 else (1,)


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="The small shape only, for a first look: some 40 seconds.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Time for the turns of each of the 18 settings.")
    ] = 6.0,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/routed_linear.json",
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = ROOT
    / "benchmarks/results/routed_linear.png",
) -> None:
    """Time decomposed layers on the CPU beside dense ones, torch's BSR and CSR, bmm and scipy: 6 minutes.

    Run it on a machine that does nothing else. A first look:

      python benchmarks/routed_linear.py --quick --out /tmp/quick.json --picture /tmp/quick.png
    """
    console = Console()
    console.width = max(console.width, 130)
    warnings.filterwarnings("ignore", message="Sparse (CSR|BSR) tensor support is in beta")
    shapes, seconds = (SHAPES[-1:], min(seconds, 1.5)) if quick else (SHAPES, seconds)
    before = torch.get_num_threads()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("preparing", total=1 + len(shapes) * len(counts()) * len(TOKENS))

        def step(what: str) -> None:
            progress.update(task, description=what, advance=0 if what == "ceilings" else 1)

        try:
            rows, ceilings = measure(shapes, seconds, step)
        finally:
            torch.set_num_threads(before)
        progress.update(task, completed=progress.tasks[0].total or 0)
    lines = judged(rows)
    console.print(table_of(rows))
    for line in lines:
        console.print(line, highlight=False)
    console.print("Left out: 2:4 and Triton's BSR, which run on a GPU.", highlight=False)
    figures = {
        "command": f"python benchmarks/routed_linear.py --seconds {seconds:g}" + " --quick" * quick,
        "seeds": {"layers": 0},
        "machine": {
            "device": "cpu",
            **machine(),
            "compiled": compiled_products() is not None,
        },
        "versions": installed("gradtrace", "torch", "numpy", "scipy"),
        "ceilings": ceilings,
        "judged": lines,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    draw(rows, picture)
    console.print(f"Written to {out} and {picture}", highlight=False)


def table_of(rows: list[dict[str, Any]]) -> Table:
    """One line a setting, with the shares of its cases."""
    table = Table(
        title="share of 1/density that is reached as speed over dense; (..): dense is too short to count; "
        "-: the planner stays dense",
        box=None,
        pad_edge=False,
        caption="g64 .5: row groups of 64 at density 0.5; b4: 4 blocks; p4: 4 blocks not folded",
    )
    cases = list(dict.fromkeys(row["case"] for row in rows))
    short = {case.name: case.short for case in CASES}
    for heading in ("layer", "thr", "tok", "dense ms", *(short[case] for case in cases)):
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    settings = dict.fromkeys((row["inputs"], row["outputs"], row["threads"], row["tokens"]) for row in rows)
    for setting in settings:
        inputs, outputs, threads, tokens = setting
        own = [
            row for row in rows if (row["inputs"], row["outputs"], row["threads"], row["tokens"]) == setting
        ]
        dense = own[0]["seconds"]["dense"]["median"] * 1e3
        table.add_row(f"{inputs}>{outputs}", str(threads), str(tokens), f"{dense:.3g}", *map(_cell, own))
    return table


def _cell(row: dict[str, Any]) -> str:
    share = f"{row['share']:.2f}" + ("-" if row["planner"]["choice"] == "dense" else "")
    return share if row["counted"] else f"({share})"


if __name__ == "__main__":
    typer.run(main)
