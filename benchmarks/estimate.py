"""Does `gradtrace estimate` foretell what a conversion then gives? Quality, latency and memory, on MNIST.

Trains the classifier of recipes/mnist.py with the ledger on, estimates, and only then converts at each
density and measures the converted model beside the dense one, in turns.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import mnist  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.callbacks import GradientLedger  # noqa: E402
from gradtrace.estimation.assumptions import ERROR  # noqa: E402
from gradtrace.estimation.estimated import Level  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.latency import interleaved  # noqa: E402
from gradtrace.report.table import Table  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402

DENSITIES = (0.8, 0.6, 0.4, 0.3, 0.2, 0.1)
POINTS = 0.015


@dataclass(frozen=True)
class Row:
    """One density of one seed: `expected` by the estimate, `got` from the converted model; seconds a call."""

    seed: int
    by: str
    density: float
    expected_quality: float
    got_quality: float
    expected_seconds: float
    got_seconds: float
    expected_dense_seconds: float
    got_dense_seconds: float
    expected_bytes: int
    got_bytes: int
    expected_layers: int
    got_layers: int

    @property
    def time_error(self) -> float:
        """Of the predicted time relative to dense, as a share of the measured one: moods cancel."""
        expected = self.expected_seconds / self.expected_dense_seconds
        return expected / (self.got_seconds / self.got_dense_seconds) - 1

    @property
    def quality_error(self) -> float:
        """Expected less got."""
        return self.expected_quality - self.got_quality


def trained(seed: int, epochs: int, folder: Path) -> tuple[mnist.Classifier, gt.Ledger]:
    torch.manual_seed(seed)
    net = mnist.Classifier()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mnist.ledger.zarr"
    mnist.fit(net, seed, epochs, [GradientLedger(path, entry_steps=64, mode="overwrite")])
    return net.eval(), gt.Ledger.open(path)


def measured(
    seed: int, by: str, net: mnist.Classifier, ledger: gt.Ledger, level: Level, dense: Level, tokens: int
) -> Row:
    mask = gt.select(gt.score(ledger, net, by=by), density=level.density, granularity="rows")
    plan = gt.plan(net, mask, tokens=tokens)
    made = gt.convert_(deepcopy(net), plan).eval()
    batch = images(tokens)
    beside = interleaved({"dense": net, "converted": made}, batch, rounds=60)
    assert level.quality is not None
    return Row(
        seed=seed,
        by=by,
        density=level.density,
        expected_quality=level.quality,
        got_quality=mnist.validate(made),
        expected_seconds=level.seconds,
        got_seconds=beside["converted"].median,
        expected_dense_seconds=dense.seconds,
        got_dense_seconds=beside["dense"].median,
        expected_bytes=level.bytes,
        got_bytes=sum(one.nbytes for one in (*made.parameters(), *made.buffers())),
        expected_layers=level.converted,
        got_layers=len(plan.converted),
    )


def images(tokens: int) -> torch.Tensor:
    held_out = mnist.digits().test_images
    return held_out[torch.arange(tokens) % len(held_out)]


def table(rows: list[Row]) -> Table:
    cells = tuple(
        (
            f"{row.by}, seed {row.seed}, keep {row.density:g}",
            f"{row.expected_quality:.1%}",
            f"{row.got_quality:.1%}",
            f"{row.expected_dense_seconds / row.expected_seconds:.2f}x",
            f"{row.got_dense_seconds / row.got_seconds:.2f}x",
            f"{row.expected_bytes / 1e6:.2f}",
            f"{row.got_bytes / 1e6:.2f}",
        )
        for row in rows
    )
    columns = ("case", "quality, estimated", "got", "speed, estimated", "measured", "MB, estimated", "is")
    return Table("Estimates beside what conversion gave", columns, cells)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Trainings.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs a training.")] = mnist.EPOCHS,
    tokens: Annotated[int, typer.Option(min=1, help="Images a call.")] = 512,
    runs: Annotated[Path, typer.Option(help="Where trainings go.")] = Path("runs/estimate"),
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/estimate.json",
    loaded: Annotated[
        bool, typer.Option("--loaded", help="Note that the machine did other things too.")
    ] = False,
) -> None:
    """Compare estimates with conversions; some 3 minutes."""
    rows = []
    for seed in range(seeds):
        net, ledger = trained(seed, epochs, runs / f"seed-{seed}")
        for by in ("support", "magnitude"):
            found = gt.estimate(
                ledger,
                net,
                densities=DENSITIES,
                by=by,
                tokens=tokens,
                validate=mnist.validate,
                examples=len(mnist.digits().test_labels),
                example=images(tokens),
            )
            rows += [measured(seed, by, net, ledger, one, found.dense, tokens) for one in found.levels]
    console = terminal()
    table(rows).print(console)
    within = [abs(row.time_error) <= ERROR for row in rows]
    near = [abs(row.quality_error) <= POINTS for row in rows]
    console.print(
        f"Time within {ERROR:.0%} in {sum(within)} of {len(rows)} cases, quality within "
        f"{POINTS * 100:g} points in {sum(near)}."
    )
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "loaded": loaded,
        },
        "versions": {name: version(name) for name in ("gradtrace", "torch", "numpy", "lightning")},
        "python": platform.python_version(),
        "seeds": seeds,
        "epochs": epochs,
        "tokens": tokens,
        "cases": len(rows),
        "time_within": sum(within),
        "time_bound": ERROR,
        "time_error_median": median(abs(row.time_error) for row in rows),
        "time_error_largest": max(abs(row.time_error) for row in rows),
        "quality_within": sum(near),
        "quality_bound": POINTS,
        "quality_error_largest": max(abs(row.quality_error) for row in rows),
        "bytes_error_largest": max(abs(row.expected_bytes / row.got_bytes - 1) for row in rows),
        "rows": [asdict(row) | {"time_error": row.time_error} for row in rows],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}.")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
