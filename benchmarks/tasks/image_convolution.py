"""Searched: a convolution net on 5,000 handwritten digits, SGD with momentum; narrow like the MLP."""

from __future__ import annotations

import torch
from tasks.images import images
from tasks.in_memory import classified, classifier_loss, shuffled_batches
from tasks.task import Task
from torch import nn

__all__ = ["IMAGE_CONVOLUTION"]

IMAGE_CONVOLUTION = Task(
    name="image-convolution",
    searched=True,
    steps=600,
    model=lambda: nn.Sequential(
        nn.Unflatten(-1, (1, 28, 28)),
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 9, 10),
    ),
    optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
    batches=lambda seed, steps: shuffled_batches(images()[0], seed, steps, 64),
    loss=classifier_loss,
    validate=lambda net: classified(net, *images()[1]),
)
