"""Case study: a byte-level transformer from scratch, on the source of Python's standard library."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from byte_model import CONTEXT, ByteModel, batches, loss_of, text
from case_study import Case, Settings, study
from language import BATCH, DECAY, LR, schedule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradtrace as gt

BELOW: tuple[Literal["inputs", "gram"], ...] = ("inputs", "gram")  # for wanda and least squares
SEEDS = [0]
RESULTS = Path("benchmarks/results/case_language.json")
SHAPES = {"dense": (256, 4), "equal cost": (128, 4)}  # width, layers
WINDOWS = 192  # held out


def fresh(name: str) -> ByteModel:
    """A model with any weights."""
    width, layers = SHAPES[name]
    return ByteModel(width, layers)


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    """Nats a byte, in bfloat16 where that is safe."""
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(net, batch)


def train(steps: int, more: int, name: str, seed: int, path: Path | None) -> ByteModel:
    """Train from scratch; the smaller model takes `more` steps, which the others have for their recovery."""
    torch.manual_seed(seed)
    net = fresh(name)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR * 128 / SHAPES[name][0], weight_decay=DECAY)
    recorder = gt.Recorder(net, path, entry_steps=160, below=BELOW, mode="overwrite") if path else None
    total = steps if path else steps + more
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, total))
    for batch in batches(seed, total, BATCH):
        loss(net, batch).backward()  # type: ignore[no-untyped-call]
        if recorder is not None:
            recorder.observe(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    if recorder is not None:
        recorder.close()
    return net


def recovery_batches(seed: int, steps: int) -> Iterator[Tensor]:
    """Other places of the training text than the training saw first."""
    return batches(seed, steps, BATCH)


@torch.inference_mode()
def judged(net: nn.Module) -> NDArray[np.float64]:
    """Nats a byte in each of some windows spread over the held-out files."""
    begins = torch.linspace(0, len(text().held_out) - CONTEXT - 1, WINDOWS).long()[:, None]
    found = []
    for some in torch.split(begins, 32):
        batch = text().held_out[some + torch.arange(CONTEXT + 1)].long()
        nats = cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        found.append(nats.view(len(some), CONTEXT).mean(1))
    return torch.cat(found).double().numpy()


def example(size: int) -> Tensor:
    """The first windows held out, int64 (size, CONTEXT)."""
    return text().held_out[: size * CONTEXT].view(size, CONTEXT).long()


def facts() -> Mapping[str, Any]:
    """The text, and the sizes of the models."""
    return {
        "text": text().digest,
        "bytes": len(text().train),
        "held_out": WINDOWS * CONTEXT,
        "width_and_layers": SHAPES,
    }


def main(
    run: Annotated[Path, typer.Option(help="Where the models go.")] = Path("runs/case-language"),
    seed: Annotated[list[int], typer.Option(help="Trainings; say it again for more.")] = SEEDS,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 700,
    density: Annotated[float, typer.Option(help="Share of the blocks' weights to keep.")] = 0.25,
    recovery: Annotated[int, typer.Option(min=0, help="Steps of training after masking.")] = 200,
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each model.")] = 30,
    price: Annotated[float, typer.Option(help="Price of an hour of this machine.")] = 0.1,
    loaded: Annotated[bool, typer.Option("--loaded", help="Note that the machine did other things.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure what was trained.")] = True,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS,
) -> None:
    """A transformer of 3.3 million weights learns Python byte by byte, and is then decomposed.

    What is there with the same settings is not trained again. On two quiet cores a seed takes some 10
    minutes.
    """
    case = Case(
        name="Byte-level language model",
        items="bytes",
        each=CONTEXT,
        tokens=CONTEXT,
        measure="nats a byte",
        lower_is_better=True,
        fresh=fresh,
        train=partial(train, steps, recovery),
        training={"steps": steps, "more": recovery, "text": text().digest},
        batches=recovery_batches,
        loss=loss,
        judged=judged,
        example=example,
        layers=lambda name: name.startswith("blocks."),
        facts=facts,
    )
    study(case, Settings(tuple(seed), density, recovery, 5e-4, 32, rounds, price, loaded), run, out, measure)


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
