"""Planted blocks: whether annealing finds the K independent parts of what a dense MLP has learned.

A teacher of K ReLU networks behind hidden permutations of inputs and outputs, dense inputs, noise on what it
says. A dense student learns it; from there, for equally many steps, go on: the student as it is, one annealed
by `StructuralAnnealing` with a live ledger, and one with random permuted blocks of the same size.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from kept import once
from lightning.pytorch import Callback, LightningModule, Trainer
from machine import installed, machine
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.annealing.blocks import filled
from gradtrace.annealing.masking import Masking
from gradtrace.annealing.mlp import find_mlps
from gradtrace.callbacks import GradientLedger, StructuralAnnealing
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.table import Table
from gradtrace.report.terminal import terminal

ROOT = Path(__file__).resolve().parents[1]
SIDE = 8  # inputs, hidden units and outputs of each of the teacher's parts
WIDER = 2  # the student's hidden units for each of the teacher's
BATCH, HELD_OUT = 128, 8192
LR, LR_AFTER = 5e-3, 3e-3
COUNTS = (4, 8, 16)
LOSS, FLOPS, SHARE = 1.05, 1.1, 0.9  # what is asked: loss over dense's, share over 1 / K, seeds


class Teacher(NamedTuple):
    """`of_inputs` and `of_outputs`: int64, which part each belongs to."""

    first: Tensor
    second: Tensor
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, seed: int, blocks: int) -> Teacher:
        draw = torch.Generator().manual_seed(1000 + seed)
        first = torch.randn(blocks, SIDE, SIDE, generator=draw) * (2 / SIDE) ** 0.5
        second = torch.randn(blocks, SIDE, SIDE, generator=draw) / SIDE**0.5
        places = (torch.randperm(blocks * SIDE, generator=draw) for _ in range(2))
        return cls(first, second, *places)

    @property
    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which part each input and each output belongs to."""
        found = []
        for places in (self.inputs, self.outputs):
            labels = np.empty(len(places), np.int64)
            labels[places.numpy()] = np.arange(len(places)) // SIDE
            found.append(labels)
        return found[0], found[1]

    def __call__(self, x: Tensor) -> Tensor:
        blocks = len(self.first)
        hidden = torch.einsum("khn,bkn->bkh", self.first, x[:, self.inputs].view(-1, blocks, SIDE)).relu()
        said = torch.einsum("koh,bkh->bko", self.second, hidden).flatten(1)
        return torch.empty_like(said).index_copy_(1, self.outputs, said)


class Student(LightningModule):
    """Learns from fresh noisy samples of a teacher; one cosine of learning rate a fit."""

    def __init__(self, teacher: Teacher, noise: float, net: nn.Module, seed: int, lr: float) -> None:
        super().__init__()
        self.net, self.lr, self.noise = net, lr, noise
        self.teacher = teacher
        self.draw = torch.Generator().manual_seed(seed)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = torch.randn(BATCH, len(self.teacher.inputs), generator=self.draw)
        said = self.teacher(x)
        target = said + self.noise * torch.randn(said.shape, generator=self.draw)
        return nn.functional.mse_loss(self.net(x), target)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 0.02 * self.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class Held(Callback):
    """A mask that stands from the beginning."""

    def __init__(self, mask: dict[str, NDArray[np.bool_]]) -> None:
        self.mask = mask

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.masking = Masking(pl_module, self.mask)
        self.masking.apply_(trainer.optimizers)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.masking.apply_(trainer.optimizers)


def fit(student: Student, steps: int, *callbacks: Callback) -> Student:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(student, torch.utils.data.DataLoader(range(steps), batch_size=1))  # type: ignore[arg-type]
    return student


@torch.inference_mode()
def losses(student: Student, seed: int) -> tuple[float, float]:
    """Held-out squared error against noisy targets, and against what the teacher says without noise."""
    draw = torch.Generator().manual_seed(2000 + seed)
    x = torch.randn(HELD_OUT, len(student.teacher.inputs), generator=draw)
    said, guess = student.teacher(x), student.net(x)
    noisy = said + student.noise * torch.randn(said.shape, generator=draw)
    return float((guess - noisy).square().mean()), float((guess - said).square().mean())


def same_partition(found: Iterable[int], planted: Iterable[int]) -> bool:
    """Whether the labels are a renaming of each other."""
    pairs = set(zip(found, planted, strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def trial(seed: int, blocks: int, steps: int, after: int, noise: float, folder: Path) -> dict[str, Any]:
    began = perf_counter()
    torch.manual_seed(seed)
    teacher, side = Teacher.of(seed, blocks), blocks * SIDE
    net = nn.Sequential(nn.Linear(side, WIDER * side), nn.ReLU(), nn.Linear(WIDER * side, side))
    dense = fit(Student(teacher, noise, net, seed, LR), steps)

    def on(*callbacks: Callback) -> Student:
        student = Student(teacher, noise, deepcopy(dense.net), seed + 500, LR_AFTER)
        return fit(student, after, *callbacks)

    callback = StructuralAnnealing("blocks", blocks=blocks, begin=0.0, end=0.5)
    annealed = on(GradientLedger(folder / f"{blocks}-{seed}", window_steps=8, entry_steps=64), callback)
    assert callback.annealing is not None
    assert callback.mask is not None
    progress = callback.annealing.progress
    labels = progress.labels[0]
    draw = np.random.default_rng(seed)
    shuffled = tuple(draw.permutation(level) for level in labels)  # blocks of the same sizes
    random = on(Held(filled(find_mlps(annealed)[0], shuffled)))

    whole, found = losses(on(), seed), losses(annealed, seed)
    chance = losses(random, seed)
    both = same_partition(
        np.concatenate([labels[0], labels[-1]]).tolist(), np.concatenate(teacher.labels).tolist()
    )
    return {
        "blocks": blocks,
        "seed": seed,
        "exact": both,
        "found_by": progress.how,
        "stage": progress.stage,
        "dense": whole[0],
        "annealed": found[0],
        "random": chance[0],
        "dense_without_noise": whole[1],
        "annealed_without_noise": found[1],
        "random_without_noise": chance[1],
        "flops_share": callback.mask.density,
        "seconds": perf_counter() - began,
    }


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    blocks = rows[0]["blocks"]
    good = [
        row["exact"]
        and row["annealed"] <= LOSS * row["dense"]
        and row["flops_share"] <= FLOPS / row["blocks"]
        for row in rows
    ]
    means = ("dense", "annealed", "random", "flops_share")
    exact = sum(row["exact"] for row in rows)
    return {
        "blocks": blocks,
        "seeds": len(rows),
        "exact": exact,
        "all_three": sum(good),
        **{name: fmean(row[name] for row in rows) for name in means},
        **{
            f"{name}_without_noise": fmean(row[f"{name}_without_noise"] for row in rows)
            for name in ("dense", "annealed", "random")
        },
        "largest_loss_ratio": max(row["annealed"] / row["dense"] for row in rows),
        "largest_flops_over_ideal": max(row["flops_share"] * blocks for row in rows),
        "holds": sum(good) >= SHARE * len(rows),
    }


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each K.")] = 10,
    steps: Annotated[int, typer.Option(min=40, help="Steps of the dense training.")] = 1500,
    after: Annotated[int, typer.Option(min=40, help="Steps after it, of each arm.")] = 1000,
    noise: Annotated[
        float, typer.Option(help="Standard deviation of the noise; the signal's is near 1.")
    ] = 0.3,
    runs: Annotated[Path, typer.Option(help="Where each trial's figures are kept.")] = ROOT
    / "runs/planted-blocks",
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT
    / "benchmarks/results/planted_blocks.json",
) -> None:
    """Plant blocks, learn them densely, and look for them by annealing.

    Interrupted, the same command goes on. Try `--seeds 1 --out /tmp/tiny.json` first.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module=r"(lightning|torch)\b")
    console = terminal()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    rows: list[dict[str, Any]] = []
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        TemporaryDirectory(prefix="blocks-") as folder,
    ):
        task = progress.add_task("", total=len(COUNTS) * seeds)
        settings = {"steps": steps, "after": after, "noise": noise}
        for blocks, seed in product(COUNTS, range(seeds)):
            progress.update(task, description=f"{blocks} blocks, seed {seed}")
            one = partial(trial, seed, blocks, steps, after, noise, Path(folder))
            rows.append(once(runs / f"{blocks}-{seed}.json", settings, one))
            progress.advance(task)
            if not console.is_terminal:
                print(rows[-1], file=sys.stderr, flush=True)
    summary = [judged([row for row in rows if row["blocks"] == blocks]) for blocks in COUNTS]
    cells = tuple(
        (
            f"{one['blocks']}",
            f"{one['exact']} of {one['seeds']}",
            f"{one['all_three']} of {one['seeds']}",
            *(f"{one[name]:.4f}" for name in ("dense", "annealed", "random")),
            *(f"{one[f'{name}_without_noise']:.5f}" for name in ("dense", "annealed", "random")),
            f"{one['largest_loss_ratio']:.3f}",
            f"{one['largest_flops_over_ideal']:.3f}",
        )
        for one in summary
    )
    heads = ("K", "exact", "all three", "dense", "annealed", "random", "dense*", "annealed*", "random*")
    note = (
        "Mean held-out squared error; *: against the teacher without its noise. All three: exact, loss "
        f"within {LOSS - 1:.0%} of dense, cost within {FLOPS - 1:.0%} of 1 / K. The last two: the worst."
    )
    Table("Planted blocks", (*heads, "loss over dense", "flops x K"), cells, note).print(console)
    result = {
        "command": " ".join(["python", "benchmarks/planted_blocks.py", *sys.argv[1:]]),
        "seeds": list(range(seeds)),
        "steps": steps,
        "after": after,
        "noise": noise,
        "summary": summary,
        "rows": rows,
        "holds": all(one["holds"] for one in summary),
        "versions": installed("gradtrace", "torch", "lightning", "numpy"),
        "machine": machine(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}")
    if not result["holds"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
