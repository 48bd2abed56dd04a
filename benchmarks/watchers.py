"""What may watch a training's gradients: the recorder, and what a user would pick instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.optim import Optimizer

from gradtrace.kernels.accumulate import accumulate_reference_
from gradtrace.recorder import recorder as recorder_module
from gradtrace.recorder.recorder import Recorder

__all__ = ["WATCHERS", "Kind", "Watch", "Watcher"]


@dataclass(frozen=True)
class Watch:
    """How one training is watched.

    Attributes:
        backward: what to be in during the backward pass.
        observe: called between the backward pass and the optimizer's step.
        settle: called after it; waits until nothing of this step goes on in the background.
        watching: what to be in for a step that is watched below the step, where there are such.
        watched_share: which share of the steps is.
        commit: what makes an entry durable, where there are entries.
        entry_steps: how many steps one entry holds.
        close: called at the end.
    """

    backward: Callable[[], AbstractContextManager[object]] = nullcontext
    observe: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None
    watching: Callable[[], AbstractContextManager[object]] | None = None
    watched_share: Callable[[], float] = lambda: 0.0
    commit: Callable[[], object] | None = None
    entry_steps: int = 1
    close: Callable[[], None] = lambda: None


Watcher = Callable[[nn.Module, Optimizer, Path], Watch]


def nothing(model: nn.Module, optimizer: Optimizer, folder: Path) -> Watch:
    return Watch()


def settle(live: Recorder) -> None:
    """Wait for the windows, watched steps and entries that the recorder has handed on."""
    if live._stream is not None:
        live._stream.drain(merged=True)


@contextmanager
def watching(live: Recorder) -> Iterator[None]:
    """Have the step within watched, whatever was drawn."""
    assert live._below is not None
    every, live._below.every = live._below.every, 1
    live._below.begin(live.step)
    yield
    live._below.every = every
    live._below.close()


def recorder(**settings: Any) -> Watcher:
    """The recorder as a user would make it."""

    def watch(model: nn.Module, optimizer: Optimizer, folder: Path) -> Watch:
        live = Recorder(model, folder / "run.ledger.zarr", **settings)
        return Watch(
            observe=lambda: live.observe(optimizer),
            settle=lambda: settle(live),
            watching=None if live._below is None else lambda: watching(live),
            watched_share=lambda: 0.0 if live._below is None else 1 / live._below.every,
            commit=live.commit,
            entry_steps=live._entry_steps,
            close=live.close,
        )

    return watch


def plain_recorder(model: nn.Module, optimizer: Optimizer, folder: Path) -> Watch:
    """The recorder where nothing can be compiled."""
    live = Recorder(model, folder / "run.ledger.zarr")

    def observe() -> None:
        with patch.object(recorder_module, "accumulate_", accumulate_reference_):
            live.observe(optimizer)

    return Watch(
        observe=observe,
        settle=lambda: settle(live),
        commit=live.commit,
        entry_steps=live._entry_steps,
        close=live.close,
    )


def wandb_watch(model: nn.Module, optimizer: Optimizer, folder: Path) -> Watch:
    """Histograms of every gradient, every step, logged offline."""
    import wandb

    run = wandb.init(
        mode="offline", dir=folder, project="overhead", settings=wandb.Settings(silent=True, console="off")
    )
    run.watch(model, log="gradients", log_freq=1)
    return Watch(observe=lambda: run.log({}), close=run.finish)


def grad_norms(model: nn.Module, optimizer: Optimizer, folder: Path) -> Watch:
    """Lightning's `grad_norm`, a norm for each parameter, logged every step as its documentation shows."""
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import grad_norm

    logger = CSVLogger(folder)
    steps = iter(range(10**9))

    def observe() -> None:
        logger.log_metrics({k: float(v) for k, v in grad_norm(model, norm_type=2).items()}, next(steps))

    return Watch(observe=observe, close=lambda: logger.finalize("success"))


def backpack_sums(model: nn.Module, optimizer: Optimizer, folder: Path) -> Watch:
    """BackPACK's sum over samples of the squared gradient, on the Linear layers (it knows no attention)."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    for module in model.modules():
        if isinstance(module, nn.Linear):
            extend(module)

    @contextmanager
    def backward() -> Iterator[None]:
        with backpack(SumGradSquared()):
            yield

    return Watch(backward=backward)


@dataclass(frozen=True)
class Kind:
    """A watcher with the words for it, what it needs installed, and the share of a step it may cost.

    Attributes:
        most: steps to take part in, 0 for all.
        slow: it multiplies the time of a step: a single step tells as much as a block.
        rest: seconds to let pass after each step, uncounted, for what another process does about it.
    """

    label: str
    watch: Watcher
    needs: tuple[str, ...] = ()
    target: float | None = None
    most: int = 0
    slow: bool = False
    rest: float = 0.0


EVERYTHING = ("positions", "samples", "inputs", "gram")

WATCHERS = {
    "none": Kind("no recorder", nothing),
    "default": Kind("gradtrace, compiled pass", recorder(), target=0.010),
    "plain": Kind("gradtrace, plain torch", plain_recorder, target=0.030),
    "below": Kind(
        "gradtrace, positions at every 16th step", recorder(below="positions", below_every=16), target=0.030
    ),
    "samples": Kind(
        "gradtrace, samples at every 16th step", recorder(below="samples", below_every=16), target=0.030
    ),
    "budget": Kind(
        "gradtrace, everything, overhead=0.01", recorder(overhead=0.01, below=EVERYTHING), target=0.013
    ),
    "wandb": Kind(
        'wandb.watch(log="gradients", log_freq=1), offline', wandb_watch, ("wandb",), most=64, rest=0.1
    ),
    "norms": Kind("lightning grad_norm, every step, CSVLogger", grad_norms, ("lightning",), most=64),
    "backpack": Kind(
        "BackPACK SumGradSquared, Linear layers", backpack_sums, ("backpack",), most=1, slow=True
    ),
}
