"""How long a whole model takes to be planned and converted, and how much memory that takes at its peak.

Each run is a process of its own, so that its peak is its own: what it holds beyond the interpreter with its
libraries, the model included, in shares of the model's bytes. The peak is the kernel's own figure, no
sample of it. Masks keep a random share in row groups of 64, and every layer is converted, faster or not.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from torch import nn

import gradtrace as gt
from gradtrace.convert.linears import linears
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.table import Table
from gradtrace.report.terminal import terminal

MODELS = ("stack", "gpt2")
_GROUP = 64


class Stack(nn.Module):
    """`depth` MLPs 1024 -> 4096 -> 1024 one after the other: 12 have 100.7 million weights."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)."""
        for layer in self.layers:
            x = x + layer(x)
        return x


def model_of(name: str, depth: int, width: int) -> nn.Module:
    """The stack, or a GPT-2 of the same depth and width, with random weights; 12 and 768 are its smallest."""
    torch.manual_seed(0)
    if name == "stack":
        return Stack(depth, width).eval()
    from transformers import GPT2Config, GPT2LMHeadModel

    model: nn.Module = GPT2LMHeadModel(GPT2Config(n_layer=depth, n_embd=width, n_head=max(width // 64, 1)))
    return model.eval()


def mask_of(model: nn.Module, density: float) -> gt.Mask:
    """Of every convertible weight, as it lies: groups of 64 outputs keep the same random inputs."""
    generator = np.random.default_rng(0)
    masks = {}
    for layer in linears(model).values():
        if not layer.obstacle:
            outputs, inputs = layer.shape
            groups = generator.random((-(-outputs // _GROUP), inputs)) < density
            kept = np.repeat(groups, _GROUP, axis=0)[:outputs]
            masks[layer.parameter_name] = np.ascontiguousarray(kept.T) if layer.inputs_first else kept
    return gt.Mask(masks)


def measure(name: str, depth: int, width: int, density: float, tokens: int) -> dict[str, Any]:
    """One run in this process: seconds, and bytes at the peak beyond what the libraries take."""
    if name == "gpt2":
        import transformers.models.gpt2.modeling_gpt2  # noqa: F401  # not to be counted
    gt.plan(nn.Sequential(nn.Linear(64, 64)), {"0.weight": np.eye(64, dtype=np.bool_)}, tokens)
    before = psutil.Process().memory_info().rss
    model = model_of(name, depth, width)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    mask = mask_of(model, density)
    start = perf_counter()
    plan = gt.plan(model, mask, tokens, refuse=False)
    planned = perf_counter() - start
    after_planning = _peak()
    start = perf_counter()
    gt.convert_(model, plan)
    converted = perf_counter() - start
    return {
        "model": name,
        "parameters": parameters,
        "model_bytes": held,
        "libraries_bytes": before,
        "density": density,
        "tokens": tokens,
        "layers": len(plan.converted),
        "plan_seconds": planned,
        "convert_seconds": converted,
        "peak_bytes_planning": after_planning - before,
        "peak_bytes": _peak() - before,
        "peak_in_models": (_peak() - before) / held,
    }


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(MODELS)}.")] = ",".join(MODELS),
    densities: Annotated[
        str, typer.Option(help="Shares of the inputs that each row group keeps.")
    ] = "0.3,1.0",
    depth: int = 12,
    width: Annotated[int, typer.Option(help="0: 1024 for the stack, 768 for GPT-2.")] = 0,
    tokens: int = 512,
    threads: int = 1,
    out: Path = Path(__file__).parent / "results" / "conversion.json",
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure each model at each density; the limits are two minutes and three times the model's memory."""
    torch.set_num_threads(threads)
    if child:
        print(json.dumps(measure(models, depth, width, float(densities), tokens)))
        return
    rows = []
    for name in models.split(","):
        for density in densities.split(","):
            size = width or (1024 if name == "stack" else 768)
            options = {"models": name, "densities": density, "depth": depth, "width": size, "tokens": tokens}
            command = [f"--{key}={value}" for key, value in (options | {"threads": threads}).items()]
            said = subprocess.run(
                [sys.executable, __file__, *command, "--child"], check=True, capture_output=True, text=True
            )
            rows.append(json.loads(said.stdout.splitlines()[-1]))
    figures = {
        "command": " ".join(["python benchmarks/conversion.py", *sys.argv[1:]]),
        "seed": 0,
        "threads": threads,
        "machine": {"platform": platform.platform(), "cpus": psutil.cpu_count()},
        "versions": {name: version(name) for name in ("gradtrace", "torch", "numpy", "transformers")},
        "rows": rows,
    }
    write_whole(out, (json.dumps(figures, indent=1, allow_nan=False) + "\n").encode(), "results")
    table = Table(
        "Conversion of whole models",
        ("model", "parameters", "density", "plan s", "convert s", "peak / model"),
        tuple(
            (
                row["model"],
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['density']:g}",
                f"{row['plan_seconds']:.1f}",
                f"{row['convert_seconds']:.1f}",
                f"{row['peak_in_models']:.2f}",
            )
            for row in rows
        ),
    )
    table.print(terminal())


def _peak() -> int:
    """Bytes of this process at its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says was inherited from the parent, which may have been larger.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    typer.run(main)
