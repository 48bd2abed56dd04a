"""How much of what a mask costs does least-squares compensation give back? One shot, on the byte-level LM.

Trains recipes/language.py's model with Gram matrices in its ledger (what is there is not trained again),
masks all its linear layers at equal density, and asks for the held-out loss three times: as masked,
compensated from the ledger's last entries, and compensated from training batches seen in eval mode.
With `--embedding-std 1` the embeddings start as torch starts them, fifty times as large as the recipe's.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import byte_model  # noqa: E402
import language  # noqa: E402

import gradtrace as gt  # noqa: E402
from gradtrace.convert.weights_file import read_weights  # noqa: E402
from gradtrace.errors import InvalidValueError  # noqa: E402
from gradtrace.evidence.whole_file import write_whole  # noqa: E402
from gradtrace.report.table import Table  # noqa: E402
from gradtrace.report.terminal import terminal  # noqa: E402

CRITERIA: tuple[tuple[str, dict[str, Any]], ...] = (
    ("magnitude", {}),
    ("wanda", {}),
    ("fisher-step", {}),
    ("fisher", {"exponent": 0.5}),
    ("fisher", {"exponent": 0.75}),
    ("random", {}),
)
SHAPES = (("rows", 0.5), ("rows", 0.3), ("element", 0.5), ("element", 0.3), ("element", 0.2))
SOURCES = ("ledger", "batches")
BATCHES = 20
WINDOWS = 256


class Run(NamedTuple):
    """What a training left: the model in eval mode, its ledger, and the loss it has dense."""

    net: nn.Module
    ledger: gt.Ledger
    dense: float


@dataclass(frozen=True)
class Row:
    """Held-out loss increases over dense, in nats a byte; `seconds` of one compensation from the ledger."""

    seed: int
    criterion: str
    granularity: str
    density: float
    masked: float
    ledger: float
    batches: float
    promised: float
    seconds: float

    @property
    def removed(self) -> float:
        """Share of the increase that compensation from the ledger takes away."""
        return 1 - self.ledger / self.masked


def trained(seed: int, folder: Path, steps: int, embedding_std: float, progress: Progress) -> Run:
    if not (folder / "run.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        facts = language.train(seed, folder, steps, progress, embedding_std)
        write_whole(folder / "run.json", (json.dumps(facts, indent=2) + "\n").encode(), "run")
    start = json.loads((folder / "run.json").read_text()).get("embedding_std", 0.02)
    if start != embedding_std:
        raise InvalidValueError(
            f"training in {folder}",
            expected=f"embeddings that start at {embedding_std:g}",
            got=f"{start:g}",
            remedy="pass another folder to --runs",
        )
    net = byte_model.model()
    net.load_state_dict(read_weights(folder / "weights.safetensors"))
    ledger = gt.Ledger.open(folder / "language.ledger.zarr")
    return Run(net.eval(), ledger, byte_model.held_out(net, WINDOWS)[0])


def measured(run: Run, seed: int, progress: Progress) -> list[Row]:
    linear = {f"{name}.weight" for name, module in run.net.named_modules() if isinstance(module, nn.Linear)}
    given = byte_model.batches(seed + 1000, BATCHES, language.BATCH)
    moments = gt.input_moments(run.net, (batch[:, :-1] for batch in given))

    def increase(net: nn.Module) -> float:
        return byte_model.held_out(net, WINDOWS)[0] - run.dense

    rows = []
    for by, options in CRITERIA:
        scores = gt.score(run.ledger, run.net, by=by, **options)
        for granularity, density in SHAPES:
            mask: Mapping[str, NDArray[np.bool_]] = gt.select(
                {name: scores[name] for name in linear}, density=density, granularity=granularity
            )
            began = perf_counter()
            found = gt.compensation(run.net, mask, run.ledger)
            seconds = perf_counter() - began
            rows.append(
                Row(
                    seed,
                    " ".join([by, *(f"{name}={value}" for name, value in options.items())]),
                    granularity,
                    density,
                    masked=increase(gt.apply_mask_(deepcopy(run.net), mask)),
                    ledger=increase(found.apply_(deepcopy(run.net))),
                    batches=increase(gt.compensate_(deepcopy(run.net), mask, moments)),
                    promised=fmean(layer.removed for layer in found.values()),
                    seconds=seconds,
                )
            )
            progress.advance(progress.task_ids[-1])
    return rows


def table(rows: list[Row], granularity: str, density: float) -> Table:
    cells = []
    for criterion in dict.fromkeys(row.criterion for row in rows):
        own = [
            row
            for row in rows
            if (row.criterion, row.granularity, row.density) == (criterion, granularity, density)
        ]
        masked, ledger, batches = (fmean(getattr(row, name) for row in own) for name in ("masked", *SOURCES))
        cells.append(
            (
                criterion,
                f"{masked:.3f}",
                f"{ledger:.3f}",
                f"{batches:.3f}",
                f"{1 - ledger / masked:.0%}",
                f"{fmean(row.promised for row in own):.0%}",
                f"{fmean(row.seconds for row in own):.2f}",
            )
        )
    kept = "inputs of 64 rows at once" if granularity == "rows" else "single weights"
    columns = ("criterion", "masked", "from ledger", "from batches", "gone", "promised", "seconds")
    note = (
        f"Mean of {len({row.seed for row in rows})} seeds. Gone: share of the increase that compensation "
        "from the ledger takes away; promised: of the layers' squared errors, by the moments themselves."
    )
    return Table(f"Loss increase over dense, {kept}, density {density:g}", columns, tuple(cells), note)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Trainings.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps a training, where it is not there yet.")] = 1200,
    runs: Annotated[
        Path, typer.Option(help="Where trainings are, or go; those of language.py will do.")
    ] = ROOT / "runs/language",
    embedding_std: Annotated[
        float, typer.Option(min=0, help="The embeddings' start, where it is trained; torch's own is 1.")
    ] = 0.02,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/compensation.json",
) -> None:
    """Compensate masks of a byte-level transformer and say what that gives back of the loss.

    Try `--steps 50 --runs /tmp/tiny --out /tmp/tiny.json` first.
    """
    console = terminal()
    byte_model.text()  # reading the files is no part of the training time
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    rows, dense = [], []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        training = progress.add_task("training", total=seeds * steps)
        for seed in range(seeds):
            run = trained(seed, runs / f"seed-{seed}", steps, embedding_std, progress)
            progress.update(training, completed=(seed + 1) * steps)
            progress.add_task(f"seed {seed}: masks", total=len(CRITERIA) * len(SHAPES))
            rows += measured(run, seed, progress)
            dense.append(run.dense)
    for granularity, density in SHAPES:
        table(rows, granularity, density).print(console)
    result = {
        "seeds": seeds,
        "embedding_std": embedding_std,
        "text": byte_model.text().digest,
        "dense": dense,
        "rows": [asdict(row) | {"removed": row.removed} for row in rows],
        "machine": {"torch": torch.__version__, "python": platform.python_version()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}; trainings are in {runs}.")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
