"""Train a byte-level transformer on Python's own source with the ledger on, once per seed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from byte_model import ByteModel, batches, held_out, loss_of, text
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

import gradtrace as gt
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.table import Table
from gradtrace.report.terminal import terminal

BATCH = 16
LR = 2e-3
DECAY = 0.1


def schedule(step: int, steps: int) -> float:
    """Share of the full learning rate: up over the first twentieth, then along a cosine to a tenth."""
    rising = max(1, steps // 20)
    if step < rising:
        return (step + 1) / rising
    return 0.55 + 0.45 * math.cos(math.pi * (step - rising) / max(1, steps - rising))


def train(
    seed: int, folder: Path, steps: int, progress: Progress, embedding_std: float = 0.02
) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = ByteModel(embedding_std=embedding_std)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    task = progress.task_ids[0]
    began = perf_counter()
    # These folders are this recipe's own, so running it again replaces what it left there.
    with gt.Recorder(
        net,
        folder / "language.ledger.zarr",
        entry_steps=160,
        below=("positions", "inputs", "gram"),  # what `fisher`, `wanda` and gt.compensate_ need
        mode="overwrite",
    ) as recorder:
        for batch in batches(seed, steps, BATCH):
            loss = loss_of(net, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            recorder.observe(optimizer)  # the only change to the loop
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            progress.update(task, advance=1, description=f"seed {seed}, loss {loss.item():.2f}")
    seconds = perf_counter() - began
    save_file(net.state_dict(), folder / "weights.safetensors")
    nats, right = held_out(net.eval())
    summary = recorder.summary()
    return {
        "seed": seed,
        "embedding_std": embedding_std,
        "loss": nats,
        "accuracy": right,
        "seconds": seconds,
        "recorder_share": summary.observe_seconds / seconds,
        "never_supported": summary.never_supported,
    }


def main(
    out: Annotated[Path, typer.Option(help="Where the runs go: OUT/seed-0, OUT/seed-1, ...")] = Path(
        "runs/language"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to train.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps a seed; 1,200 take some minutes on a CPU.")] = 1200,
) -> None:
    """Train on real text that every Python has: the source of its standard library. Nothing is downloaded.

    128 wide, 4 layers, AdamW, 16 windows of 128 bytes a step. Each seed leaves a folder OUT/seed-<k> with

        language.ledger.zarr   what training supported
        weights.safetensors    the final weights
        run.json               settings and held-out figures

    Look at one of them with

        gradtrace info runs/language/seed-0/language.ledger.zarr

    and ask, for some minutes, what its masks are worth with

        gradtrace compare runs/language/seed-0/language.ledger.zarr runs/language/seed-0/weights.safetensors
            --model recipes.byte_model:model --validate recipes.byte_model:validate

    Try `--seeds 1 --steps 100` first.
    """
    console = terminal()
    digest = text().digest  # reading the files is no part of the training time
    bar = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    settings = {"steps": steps, "batch": BATCH, "lr": LR, "weight_decay": DECAY, "text": digest}
    rows = []
    with Progress(*bar, console=console, disable=not console.is_terminal) as progress:
        progress.add_task("training", total=seeds * steps)
        for seed in range(seeds):
            folder = out / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            row = train(seed, folder, steps, progress)
            facts = json.dumps({"settings": settings} | row, indent=2) + "\n"
            write_whole(folder / "run.json", facts.encode(), "run")
            rows.append(row)

    cells = tuple(
        (
            f"{row['seed']}",
            f"{row['loss']:.3f}",
            f"{row['accuracy']:.1%}",
            f"{row['seconds']:.0f}",
            f"{row['recorder_share']:.1%}",
            f"{row['never_supported']:.1%}",
        )
        for row in rows
    )
    columns = ("seed", "nats a byte", "bytes right", "seconds", "recorder's share", "never supported")
    Table(f"Trainings of {steps:,} steps with the ledger on", columns, cells).print(console)
    console.print(f"Held out: every tenth file, text {digest}. Written to {out}/seed-*.")


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
