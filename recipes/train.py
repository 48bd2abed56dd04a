"""Train an MLP on real digits with the ledger on, once per seed, and keep each ledger and its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import lightning.pytorch as pl
import torch
import typer
from mnist import EPOCHS, Classifier, batches, digits, fit, validate
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import gradtrace as gt
from gradtrace.callbacks import GradientLedger
from gradtrace.report.table import Table
from gradtrace.report.terminal import terminal

# About an epoch: `gradtrace growth` shows what was supported at the end of each entry.
ENTRY_STEPS = 64


class Advance(pl.Callback):
    """Moves one progress bar over all seeds, one step at a time."""

    def __init__(self, progress: Progress, seed: int) -> None:
        self.progress, self.task = progress, progress.task_ids[0]
        progress.update(self.task, description=f"training seed {seed}")

    def on_train_batch_end(self, *args: object) -> None:
        """One more step."""
        self.progress.advance(self.task)


def train(seed: int, folder: Path, epochs: int, weight_decay: float, progress: Progress) -> dict[str, float]:
    torch.manual_seed(seed)
    net = Classifier(weight_decay=weight_decay)
    # These folders are this recipe's own, so running it again replaces what it left there.
    ledger = GradientLedger(folder / "mnist.ledger.zarr", entry_steps=ENTRY_STEPS, mode="overwrite")
    began = perf_counter()
    fit(net, seed, epochs, [ledger, Advance(progress, seed)])
    seconds = perf_counter() - began
    if net.trainer.interrupted:
        raise typer.Abort
    net.trainer.save_checkpoint(folder / "mnist.ckpt")
    summary = ledger.summary
    assert summary is not None
    return {
        "seed": seed,
        "accuracy": validate(net),
        "seconds": seconds,
        "recorder_share": summary.observe_seconds / seconds,
        "never_supported": summary.never_supported,
    }


def main(
    runs: Annotated[Path, typer.Option(help="Where the runs go: RUNS/seed-0, RUNS/seed-1, ...")] = Path(
        "runs/mnist"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to train.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs a seed.")] = EPOCHS,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="AdamW's decoupled weight decay.")] = 0.01,
) -> None:
    """Train with the ledger on: `Trainer(callbacks=[GradientLedger(path)])` is the only change to a training.

    Each seed leaves RUNS/seed-<k>/mnist.ledger.zarr and RUNS/seed-<k>/mnist.ckpt. Look at one of them with

        gradtrace info runs/mnist/seed-0/mnist.ledger.zarr

    and go on with `python recipes/convert.py`.
    """
    console = terminal()
    digits()  # decompressing the images is no part of the training time
    bar = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    rows = []
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:
        progress.add_task("training", total=seeds * epochs * len(batches(seed=0)))
        for seed in range(seeds):
            folder = runs / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            rows.append(train(seed, folder, epochs, weight_decay, progress))

    cells = tuple(
        (
            f"{row['seed']}",
            f"{row['accuracy']:.1%}",
            f"{row['seconds']:.1f}",
            f"{row['recorder_share']:.1%}",
            f"{row['never_supported']:.1%}",
        )
        for row in rows
    )
    columns = ("seed", "accuracy", "seconds", "recorder's share", "never supported")
    Table(f"{seeds} trainings with the ledger on", columns, cells).print(console)
    middle, total = median(row["accuracy"] for row in rows), sum(row["seconds"] for row in rows)
    console.print(f"Median accuracy {middle:.1%} on 1,000 held-out images; {total:.1f} s in all.")
    (runs / "train.json").write_text(
        json.dumps({"epochs": epochs, "weight_decay": weight_decay, "seeds": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
