"""What every kernel takes of a GPU that is not there: registers, shared memory, and what it spills (nothing).

Each kernel in each of its forms is compiled ahead of time for sm_80, sm_90 and gfx942. NVIDIA's figures are
read from the binary by `cuobjdump -res-usage`, which the triton package carries, AMD's from the assembly.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from ahead.compiling import cuobjdump, usage_of
from ahead.roofline import predictions
from ahead.variants import TARGETS, variants
from machine import installed
from rich.console import Console
from rich.progress import track
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"


def main(
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS / "aot.json",
    rooflines: Annotated[Path, typer.Option(help="Where the predictions go.")] = RESULTS
    / "roofline_predictions.json",
) -> None:
    """Compile every kernel for every GPU, and predict what an H100 takes at least: two minutes."""
    console = Console()
    console.width = max(console.width, 130)
    targets = {name: of for name, of in TARGETS.items() if of.backend == "hip" or cuobjdump() is not None}
    table = Table(title="registers / bytes of shared memory / spilled", box=None, pad_edge=False)
    for heading in ("kernel", *targets):
        table.add_column(heading, justify="left" if heading == "kernel" else "right")
    rows: list[dict[str, object]] = []
    spilled = 0
    for variant in track(variants(), "compiling", console=console):
        usage = {name: usage_of(variant, target) for name, target in targets.items()}
        spilled += sum(one.spilled for one in usage.values())
        rows.append({"kernel": variant.name, **{name: asdict(one) for name, one in usage.items()}})
        table.add_row(
            variant.name, *(f"{one.registers} / {one.shared} / {one.spilled}" for one in usage.values())
        )
    console.print(table)
    console.print(f"{len(rows)} kernels and forms for {len(targets)} GPUs; spilled in all: {spilled}")
    if len(targets) < len(TARGETS):
        console.print("Left out: NVIDIA's, this Triton package has no cuobjdump.", highlight=False)
    figures = {"command": "python benchmarks/aot.py", "versions": installed("gradtrace", "torch", "triton")}
    _write(out, figures | {"rows": rows})
    _write(rooflines, figures | predictions())
    console.print(f"Written to {out} and {rooflines}", highlight=False)


def _write(path: Path, figures: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
