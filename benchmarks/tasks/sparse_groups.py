"""Searched: groups of inputs of which few are there in a sample, and outputs that depend on some groups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from tasks.task import Batch, Quality, Task
from torch import Tensor, nn

__all__ = ["SPARSE_GROUPS"]

GROUPS, WIDTH, ACTIVE, OUTPUTS, DEPENDS = 24, 12, 3, 48, 4
NOISE = 0.1


class Teacher(NamedTuple):
    """`first` (GROUPS, WIDTH, 8), `second` (GROUPS, 8, OUTPUTS), zero where an output ignores a group."""

    first: Tensor
    second: Tensor


@cache
def _teacher() -> Teacher:
    generator = torch.Generator().manual_seed(2601)
    first = torch.randn(GROUPS, WIDTH, 8, generator=generator) / WIDTH**0.5
    second = torch.randn(GROUPS, 8, OUTPUTS, generator=generator) / 8**0.5
    heeded = torch.rand(GROUPS, OUTPUTS, generator=generator).argsort(0) < DEPENDS
    return Teacher(first, second * heeded[:, None, :])


def _samples(generator: torch.Generator, count: int) -> Batch:
    teacher = _teacher()
    there = torch.rand(count, GROUPS, generator=generator).argsort(1) < ACTIVE
    x = torch.randn(count, GROUPS, WIDTH, generator=generator) * there[..., None]
    hidden = torch.tanh(2 * torch.einsum("ngw,gwh->ngh", x, teacher.first))
    y = torch.einsum("ngh,gho->no", hidden, teacher.second)
    return x.flatten(1), y + NOISE * torch.randn(y.shape, generator=generator)


def _batches(seed: int, steps: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return (_samples(generator, 64) for _ in range(steps))


def _loss(net: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(net(batch[0]), batch[1])


@cache
def _held_out() -> Batch:
    return _samples(torch.Generator().manual_seed(2602), 4000)


@torch.inference_mode()
def _validate(net: nn.Module) -> Quality:
    return Quality(float(_loss(net, _held_out())))


SPARSE_GROUPS = Task(
    name="sparse-groups",
    searched=True,
    steps=2000,
    model=lambda: nn.Sequential(
        nn.Linear(GROUPS * WIDTH, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, OUTPUTS)
    ),
    optimizer=lambda net: torch.optim.Adam(net.parameters(), lr=2e-3),
    batches=_batches,
    loss=_loss,
    validate=_validate,
)
