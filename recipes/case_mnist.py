"""Case study: the demo's MLP on real digits."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from case_study import Case, Settings, study
from mnist import BATCH, EPOCHS, Classifier, digits, fit
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradtrace as gt
from gradtrace.callbacks import GradientLedger

BELOW: tuple[Literal["inputs", "gram"], ...] = ("inputs", "gram")  # for wanda and least squares
SEEDS = [0, 1, 2, 3, 4]
RESULTS = Path("benchmarks/results/case_mnist.json")
EQUAL = 176  # neurons in each hidden layer, for no more time than the decomposed models take


class Narrow(Classifier):
    """The same classifier with fewer hidden neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(784, EQUAL), nn.ReLU(), nn.Linear(EQUAL, EQUAL), nn.ReLU(), nn.Linear(EQUAL, 10)
        )


def fresh(name: str) -> Classifier:
    """A model with any weights."""
    return Classifier() if name == "dense" else Narrow()


def train(epochs: int, more: int, name: str, seed: int, path: Path | None) -> Classifier:
    """Train; the smaller model takes `more` epochs, which the others have for their recovery."""
    torch.manual_seed(seed)
    net = fresh(name)
    if path is None:
        fit(net, seed, epochs + more)
    else:
        fit(net, seed, epochs, [GradientLedger(path, entry_steps=64, below=BELOW, mode="overwrite")])
    return net


def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random images to train on."""
    images, labels = digits().train_images, digits().train_labels
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(0, len(labels), (BATCH,), generator=generator)
        yield images[chosen], labels[chosen]


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """As in training."""
    return cross_entropy(net(batch[0]), batch[1])


@torch.inference_mode()
def judged(net: nn.Module) -> NDArray[np.float64]:
    """1 for each held-out image whose digit is told."""
    right: Tensor = net(digits().test_images).argmax(-1) == digits().test_labels
    return right.double().numpy()


def example(size: int) -> Tensor:
    """The first images held out, (size, 784)."""
    return digits().test_images[:size]


def facts() -> Mapping[str, Any]:
    """The images."""
    return {"trained_on": len(digits().train_labels), "held_out": len(digits().test_labels)}


def main(
    run: Annotated[Path, typer.Option(help="Where the models go.")] = Path("runs/case-mnist"),
    seed: Annotated[list[int], typer.Option(help="Trainings; say it again for more.")] = SEEDS,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = EPOCHS,
    density: Annotated[float, typer.Option(help="Share of each layer's weights to keep.")] = 0.25,
    recovery: Annotated[int, typer.Option(min=0, help="Epochs of training after masking.")] = 4,
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each model.")] = 200,
    price: Annotated[float, typer.Option(help="Price of an hour of this machine.")] = 0.1,
    loaded: Annotated[bool, typer.Option("--loaded", help="Note that the machine did other things.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure what was trained.")] = True,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS,
) -> None:
    """The demo's classifier of digits, decomposed. What is there with the same settings is not trained again.

    On two quiet cores all of it takes some 3 minutes.
    """
    steps = recovery * -(-len(digits().train_labels) // BATCH)
    case = Case(
        name="MNIST MLP",
        items="images",
        each=1,
        tokens=1,
        measure="accuracy",
        lower_is_better=False,
        fresh=fresh,
        train=partial(train, epochs, recovery),
        training={"epochs": epochs, "more": recovery},
        batches=batches,
        loss=loss,
        judged=judged,
        example=example,
        layers=lambda name: name.startswith("net.") and name.endswith("weight"),
        facts=facts,
    )
    study(case, Settings(tuple(seed), density, steps, 1e-3, 32, rounds, price, loaded), run, out, measure)


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
