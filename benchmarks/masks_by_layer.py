"""Where a ledger-based mask gains on wanda's: in which kind of layer, and by what wanda does not see.

Reads what criteria_search.py trained; nothing is trained here. Two questions for each task named:

- *Which layers*: all layers get wanda's mask, and one kind of layer (all `down`, say) that of the other
  criterion instead. The share of the whole gain is what that kind does alone.
- *What wanda does not see*: wanda ranks w[i, j] by |w| times the norm of its input j. The gradient's second
  moment knows the output too. `rows`: by how much the root of it differs between the outputs of a layer,
  `columns`: between its inputs, both as the standard deviation of log10 of root mean squares; `inputs`:
  that of the input norms which wanda uses; `agreement`: Spearman's correlation of the two scores within a
  layer. All are means over layers of the kind.
"""

from __future__ import annotations

import json
import platform
import sys
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "recipes")]

import byte_model  # noqa: E402
from search.measuring import moments_of  # noqa: E402
from tasks.every_task import EVERY_TASK  # noqa: E402
from tasks.training import read_run  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.table import Table  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402

CHOSEN = 20_000


def kind_of(name: str) -> str:
    """The part of a block that a weight belongs to: "blocks.0.down.weight" -> "down"."""
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def spread(squares: NDArray[np.floating[Any]], axis: int) -> float:
    """Standard deviation of log10 of the root mean squares that are left after averaging over `axis`."""
    means = squares.astype(np.float64).mean(axis)
    return float(np.log10(means[means > 0]).std() / 2) if (means > 0).any() else 0.0


def one_run(task: str, seed: int, folder: Path, by: str, density: float, windows: int) -> dict[str, Any]:
    """Losses with wanda's masks, the other's, and one kind of layer exchanged; and what tells them apart."""
    net, ledger = read_run(EVERY_TASK[task], folder)
    moments = moments_of(EVERY_TASK[task], seed, net)
    scores = gt.score(ledger, net, by=by), gt.score(ledger, net, by="wanda", inputs=moments)
    ours, wanda = (gt.select(one, density=density) for one in scores)

    def loss(of_ours: set[str]) -> float:
        asked = deepcopy(net)
        with torch.no_grad():
            for name, parameter in asked.named_parameters():
                if name in wanda:
                    mask = (ours if kind_of(name) in of_ours else wanda)[name]
                    parameter.mul_(torch.from_numpy(np.array(mask)))
        return float(byte_model.held_out(asked, windows=windows)[0])

    kinds = list(dict.fromkeys(map(kind_of, wanda)))
    dense, none, every = float(byte_model.held_out(net, windows=windows)[0]), loss(set()), loss(set(kinds))
    random = np.random.default_rng(seed)
    rows: dict[str, dict[str, float]] = {}
    for kind in kinds:
        names = [name for name in wanda if kind_of(name) == kind]
        found = []
        for name in names:
            squares = ledger[name].grad_sumsq
            some = random.choice(squares.size, min(CHOSEN, squares.size), replace=False)
            first, second = (np.asarray(one[name]).ravel()[some] for one in scores)
            found.append(
                (
                    spread(squares, 1),
                    spread(squares, 0),
                    spread(moments[name].numpy()[None], 0),
                    float(stats.spearmanr(first, second).statistic),
                )
            )
        names_of = ("rows", "columns", "inputs", "agreement")
        rows[kind] = dict(zip(names_of, map(fmean, zip(*found, strict=True)), strict=True))
        rows[kind]["gain"] = none - loss({kind})
    return {"dense": dense, "wanda": none, "ledger": every, "kinds": rows}


def main(
    task: Annotated[list[str] | None, typer.Option(help="A text task; again for more.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    by: Annotated[str, typer.Option(help="The criterion beside wanda.")] = "fisher-step",
    density: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.3,
    windows: Annotated[int, typer.Option(min=1, help="Held-out windows a measure.")] = 64,
    runs: Annotated[Path, typer.Option(help="Where criteria_search.py kept its trainings.")] = ROOT
    / "runs/criteria",
    out: Annotated[Path, typer.Option()] = ROOT / "benchmarks/results/masks_by_layer.json",
) -> None:
    """Tell in which layers a ledger-based mask gains on wanda's, and why.

    First: python benchmarks/criteria_search.py --task byte-text --task byte-text-large-start
    """
    console = terminal()
    result: dict[str, Any] = {}
    for name in task or ["byte-text", "byte-text-large-start"]:
        each = [
            one_run(name, seed, runs / name / f"seed-{seed}", by, density, windows)
            for seed in track(range(seeds), name, console=console, transient=True)
        ]
        result[name] = each
        kinds = each[0]["kinds"]
        gain = fmean(one["wanda"] - one["ledger"] for one in each)
        rows = tuple(
            (
                kind,
                *(
                    f"{fmean(one['kinds'][kind][what] for one in each):.3f}"
                    for what in ("gain", "rows", "columns", "inputs", "agreement")
                ),
            )
            for kind in kinds
        )
        increases = [fmean(one[which] - one["dense"] for one in each) for which in ("wanda", "ledger")]
        note = f"Increase with wanda {increases[0]:.3f}, with {by} {increases[1]:.3f}: gain {gain:.3f}."
        columns = ("layers", "gain alone", "rows", "columns", "inputs", "agreement")
        Table(f"{name}, density {density:g}, {seeds} seeds", columns, rows, note).print(console)
    told = {
        "by": by,
        "density": density,
        "windows": windows,
        "seeds": seeds,
        "machine": {"torch": torch.__version__, "python": platform.python_version()},
        "tasks": result,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(told, indent=1) + "\n").encode(), "results")
    console.print(f"Written to {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
