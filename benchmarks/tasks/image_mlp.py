"""Searched: an MLP on 5,000 handwritten digits, AdamW; so narrow that half of it is missed."""

from __future__ import annotations

import torch
from tasks.images import images
from tasks.in_memory import classified, classifier_loss, shuffled_batches
from tasks.task import Task
from torch import nn

__all__ = ["IMAGE_MLP"]

IMAGE_MLP = Task(
    name="image-mlp",
    searched=True,
    steps=600,
    model=lambda: nn.Sequential(
        nn.Linear(784, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)
    ),
    optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01),
    batches=lambda seed, steps: shuffled_batches(images()[0], seed, steps, 64),
    loss=classifier_loss,
    validate=lambda net: classified(net, *images()[1]),
)
