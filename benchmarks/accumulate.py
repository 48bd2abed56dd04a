"""How close `accumulate_` comes to the memory's speed, beside what a user would write, in one run, in turns.

The gradients are a transformer's (d = 512, 6 layers, 19 million dependencies). A step moves 28 bytes for
each in float32: the gradient is read, two sums of 4 bytes and two counts of 2 are read and written. On a GPU
it is held against the bandwidth of `Tensor.copy_` of 256 MB in the same turns, which reads and writes. On a
CPU a copy also reads what it overwrites, which no count shows: there it is that of `Tensor.add_`.

The peers: the same four totals by a plain loop over the parameters, and by torch's foreach operators with
counts in float32 (they cannot add to int16); and two sums alone, by foreach, which is less work.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from machine import installed, machine
from rich.console import Console
from rich.table import Table
from torch import Tensor
from turns import Timed, in_turns, spread

from gradtrace.kernels.accumulate import Totals, accumulate_

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, LAYERS = 512, 6
COPIED = 256_000_000
AIM = 0.85
BYTES = 28  # for each dependency


def shapes() -> list[tuple[int, ...]]:
    """Those of the parameters."""
    layer: list[tuple[int, ...]]
    layer = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
    layer += [(size,) for size in (3 * WIDTH, WIDTH, 4 * WIDTH, WIDTH, WIDTH, WIDTH, WIDTH, WIDTH)]
    return [(256, WIDTH), *layer * LAYERS, (WIDTH,), (WIDTH,)]


def calls(device: torch.device) -> dict[str, Timed]:
    """What is timed, by name."""
    grads = [torch.randn(shape, device=device) for shape in shapes()]
    sizes = [grad.numel() for grad in grads]
    offsets = [sum(sizes[:number]) for number in range(len(sizes))]
    kinds = (torch.float32, torch.float32, torch.int16, torch.int16)
    totals = Totals(*(torch.zeros(sum(sizes), dtype=kind, device=device) for kind in kinds))
    flags = torch.zeros(len(grads), dtype=torch.int32, device=device)
    slots = list(range(len(grads)))
    views = [
        [total[at : at + size].view(grad.shape) for at, size, grad in zip(offsets, sizes, grads, strict=True)]
        for total in totals
    ]
    lists = [[torch.zeros_like(grad) for grad in grads] for _ in range(4)]
    source = torch.ones(COPIED // 4, device=device)
    target = torch.ones_like(source)  # touched before it is timed
    return {
        "accumulate_": lambda: accumulate_(totals, flags, grads, slots, offsets),
        "plain loop": lambda: _loop(views, grads),
        "foreach": lambda: _foreach(lists, grads),
        "foreach, two sums alone": lambda: _two(lists, grads),
        "copy": lambda: target.copy_(source),
        "add": lambda: target.add_(source),
    }


def _loop(views: list[list[Tensor]], grads: list[Tensor]) -> None:
    for grad, total, square, events, votes in zip(grads, *views, strict=True):
        total.add_(grad)
        square.addcmul_(grad, grad)
        events.add_(grad != 0)
        votes.add_(grad.sign().to(torch.int16))


def _foreach(lists: list[list[Tensor]], grads: list[Tensor]) -> None:
    _two(lists, grads)
    signs = torch._foreach_sign(grads)
    torch._foreach_add_(lists[3], signs)
    torch._foreach_abs_(signs)
    torch._foreach_add_(lists[2], signs)


def _two(lists: list[list[Tensor]], grads: list[Tensor]) -> None:
    torch._foreach_add_(lists[0], grads)
    torch._foreach_addcmul_(lists[1], grads, grads)


@torch.no_grad()
def main(
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for all turns.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS / "accumulate.json",
) -> None:
    """Time `accumulate_` beside a copy and its peers, on a GPU where there is one: half a minute."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    taken = in_turns(calls(device), seconds, torch.cuda.synchronize if device.type == "cuda" else None)
    dependencies = sum(torch.Size(shape).numel() for shape in shapes())
    middle = {name: median(times.values()) for name, times in taken.items()}
    ceilings = {"copy": 2 * COPIED / middle["copy"], "add": 3 * COPIED / middle["add"]}
    against = "copy" if device.type == "cuda" else "add"
    share = BYTES * dependencies / middle["accumulate_"] / ceilings[against]
    table = Table(title=f"{dependencies / 1e6:.1f} million dependencies, {device}", box=None, pad_edge=False)
    for heading in ("what", "ms", "times accumulate_"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, spent in middle.items():
        table.add_row(name, f"{spent * 1e3:.3g}", f"{spent / middle['accumulate_']:.2f}")
    console = Console()
    console.print(table)
    said = (
        f"accumulate_ moves {share:.2f} of the bytes that {against} does, {ceilings[against] / 1e9:.1f} GB/s"
    )
    if device.type == "cuda":
        said += f"; the aim is {AIM}: {'met' if share >= AIM else 'MISSED'}."
    else:
        said += f".\nLeft out: a GPU, there is none here; the aim is {AIM} of its copy."
    console.print(said, highlight=False)
    figures = {
        "command": f"python benchmarks/accumulate.py --seconds {seconds:g}",
        "machine": {
            **machine(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        },
        "versions": installed("gradtrace", "torch", "triton"),
        "bytes_a_dependency": BYTES,
        "dependencies": dependencies,
        "bytes_per_second": ceilings,
        "held_against": against,
        "share": share,
        "seconds": {name: spread(times) for name, times in taken.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"Written to {out}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
