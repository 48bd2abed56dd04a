"""A converted MLP and a converted transformer block beside the dense ones, eager and compiled, in turns.

The MLP (1024, 4096, 1024) keeps 4 or 16 exact blocks in both of its layers; the transformer block (512 wide,
8 heads, 64 positions a sequence) keeps 8 blocks of its MLP, and of its attention 0.3 of the inputs of every
64 outputs. Models are planned and converted as a user would: `gradtrace.plan`, `gradtrace.convert_`; layers
that the planner leaves dense are dense. Before anything is timed, the converted model must equal the masked
one. "fused" runs the MLP by the kernel `routed_mlp`, which conversion does not use yet.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from machine import installed, machine
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from turns import Timed, in_turns, ratios, spread

import gradtrace as gt
from gradtrace.kernels.routed_mlp import routed_mlp

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = (1, 16, 512)
WIDTH, HEADS, POSITIONS = 512, 8, 64


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (tokens, width), in sequences of POSITIONS, or one shorter -> the same shape."""
        sequences = -(-len(x) // POSITIONS)
        parts = self.attend(self.before(x)).view(sequences, -1, 3, self.heads, x.shape[1] // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.mlp(self.between(x))
        return out


def blocks(inputs: int, outputs: int, count: int) -> NDArray[np.bool_]:
    """A mask of so many exact blocks."""
    return np.kron(np.eye(count, dtype=np.bool_), np.ones((outputs // count, inputs // count), np.bool_))


def groups(inputs: int, outputs: int, density: float) -> NDArray[np.bool_]:
    """A mask in which every 64 outputs share their inputs."""
    draw = np.random.default_rng(0)
    rows = [np.isin(np.arange(inputs), draw.permutation(inputs)[: round(density * inputs)])]
    rows += [draw.permutation(rows[0]) for _ in range(outputs // 64 - 1)]
    return np.repeat(np.array(rows), 64, axis=0)


def models(width: int) -> dict[str, tuple[nn.Module, dict[str, NDArray[np.bool_]]]]:
    """Dense models with their masks, by name."""
    torch.manual_seed(0)
    found: dict[str, tuple[nn.Module, dict[str, NDArray[np.bool_]]]] = {}
    wide, hidden = 2 * width, 8 * width
    for count in (4, 16):
        mlp = nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, wide))
        masks = {"0.weight": blocks(wide, hidden, count), "2.weight": blocks(hidden, wide, count)}
        found[f"MLP, {count} blocks"] = (mlp, masks)
    masks = {
        "attend.weight": groups(width, 3 * width, 0.3),
        "project.weight": groups(width, width, 0.3),
        "mlp.0.weight": blocks(width, 4 * width, 8),
        "mlp.2.weight": blocks(4 * width, width, 8),
    }
    found["transformer block"] = (Block(width, HEADS), masks)
    return found


def fused(mlp: nn.Module, masks: Mapping[str, NDArray[np.bool_]], x: Tensor) -> Timed:
    """The MLP of exact blocks in order, by `routed_mlp`."""
    up, down = mlp.get_submodule("0"), mlp.get_submodule("2")
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    k, m = (int(side) for side in (masks["0.weight"][0].sum(), masks["2.weight"][0].sum()))
    count = up.in_features // k

    def flat(linear: nn.Linear) -> Tensor:
        rows, columns = (size // count for size in linear.weight.shape)
        whole = linear.weight.detach().view(count, rows, count, columns)
        return torch.cat([whole[number, :, number].reshape(-1) for number in range(count)])

    outer, hidden = (torch.arange(size, device=x.device) for size in (up.in_features, up.out_features))
    return partial(
        routed_mlp, x, flat(up), up.bias.detach(), flat(down), down.bias.detach(), outer, hidden,
        outer, [k] * count, [m] * count, [k] * count, up.in_features, "gelu",
    )  # fmt: skip


@torch.no_grad()
def row(
    name: str, model: nn.Module, masks: Mapping[str, NDArray[np.bool_]], tokens: int, seconds: float,
    compiled: bool, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Convert, check, and time one model for one number of tokens."""
    model = model.to(device)
    x = torch.randn(tokens, next(iter(masks.values())).shape[1], device=device)
    plan = gt.plan(model, masks, tokens=tokens)
    converted = gt.convert_(copy.deepcopy(model), plan, masked=True)
    masked = gt.apply_mask_(copy.deepcopy(model), plan, masked=True)
    torch.testing.assert_close(converted(x), masked(x), rtol=1e-4, atol=1e-4)
    functions: dict[str, Timed] = {"dense": lambda: model(x), "converted": lambda: converted(x)}
    if name.startswith("MLP"):
        functions["fused"] = fused(masked, masks, x)
        torch.testing.assert_close(functions["fused"](), masked(x), rtol=1e-4, atol=1e-4)
    if compiled:
        torch._dynamo.reset()
        for what, one in (("dense", torch.compile(model)), ("converted", torch.compile(converted))):
            one(x)
            functions[f"{what}, compiled"] = partial(one, x)
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    taken = in_turns(functions, seconds, wait)
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())
    return {
        "model": name,
        "tokens": tokens,
        "density": kept,
        "choices": {layer: plan[layer].choice for layer in plan},
        "speed_over_dense": {what: median(ratios(taken["dense"], times)) for what, times in taken.items()},
        "seconds": {what: spread(times) for what, times in taken.items()},
    }


def main(
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for the turns of each of the 9 rows.")] = 4.0,
    width: Annotated[int, typer.Option(help="Of the transformer block; the MLP's is twice that.")] = WIDTH,
    compiled: Annotated[bool, typer.Option(help="Also compiled, which takes a minute or two.")] = True,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS / "end_to_end.json",
) -> None:
    """Time converted models beside dense ones, on a GPU where there is one: three minutes on two cores."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    console.width = max(console.width, 120)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    names = ("dense", "dense, compiled", "converted", "converted, compiled", "fused")
    table = Table(title=f"speed over dense, eager, {device}", box=None, pad_edge=False)
    for heading in ("model", "tokens", "1/density", "dense ms", *names[1:]):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    rows = []
    for name, (model, masks) in models(width).items():
        for tokens in TOKENS:
            found = row(name, model, masks, tokens, seconds, compiled, device)
            rows.append(found)
            speeds = found["speed_over_dense"]
            dense = found["seconds"]["dense"]["median"] * 1e3
            cells = [f"{speeds[what]:.2f}x" if what in speeds else "" for what in names[1:]]
            table.add_row(name, str(tokens), f"{1 / found['density']:.2f}", f"{dense:.3g}", *cells)
    console.print(table)
    if device.type != "cuda":
        console.print("Left out: a GPU, there is none here.")
    figures = {
        "command": f"python benchmarks/end_to_end.py --seconds {seconds:g}",
        "machine": {**machine(), "device": str(device), "threads": torch.get_num_threads()},
        "versions": installed("gradtrace", "torch", "triton", "numpy"),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"Written to {out}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
