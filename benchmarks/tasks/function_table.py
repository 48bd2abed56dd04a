"""Unseen: a regression on a table, the log length of a function's source from counts of what is in it."""

from __future__ import annotations

import ast
import math
from collections import Counter
from functools import cache

import torch
from tasks.in_memory import shuffled_batches
from tasks.source_functions import functions
from tasks.task import Batch, Quality, Task
from torch import Tensor, nn

__all__ = ["FUNCTION_TABLE"]

COLUMNS = 32


@cache
def _split() -> tuple[Batch, Batch]:
    """(log counts float32 (N, COLUMNS), standardised log lengths (N, 1)) to train on, and held out."""
    counts = [Counter(type(node).__name__ for node in ast.walk(one.node)) for one in functions()]
    kinds = [kind for kind, _ in sum(counts, Counter[str]()).most_common(COLUMNS)]
    x = torch.tensor([[math.log1p(count[kind]) for kind in kinds] for count in counts])
    y = torch.tensor([[math.log(len(one.source))] for one in functions()])
    held = torch.tensor([one.held_out for one in functions()])
    x = (x - x[~held].mean(0)) / x[~held].std(0)
    y = (y - y[~held].mean()) / y[~held].std()
    return (x[~held], y[~held]), (x[held], y[held])


def _loss(net: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(net(batch[0]), batch[1])


@torch.inference_mode()
def _validate(net: nn.Module) -> Quality:
    return Quality(float(_loss(net, _split()[1])))


FUNCTION_TABLE = Task(
    name="function-table",
    searched=False,
    steps=2000,
    model=lambda: nn.Sequential(
        nn.Linear(COLUMNS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    ),
    optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01),
    batches=lambda seed, steps: shuffled_batches(_split()[0], seed, steps, 64),
    loss=_loss,
    validate=_validate,
)
