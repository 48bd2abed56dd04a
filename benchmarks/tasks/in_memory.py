"""Batches of arrays that are in memory, and the usual judgement of a classifier on them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tasks.task import Batch, Quality
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["classified", "classifier_loss", "shuffled_batches"]


def shuffled_batches(arrays: Batch, seed: int, steps: int, size: int) -> Iterator[Batch]:
    """`steps` batches of `size` rows, every row once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    passes: Iterator[Tensor] = iter(())
    for _ in range(steps):
        chosen = next(passes, None)
        if chosen is None or len(chosen) < size:
            passes = iter(torch.split(torch.randperm(len(arrays[0]), generator=generator), size))
            chosen = next(passes)
        yield tuple(array[chosen] for array in arrays)


def classifier_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of inputs and int64 labels."""
    return cross_entropy(net(batch[0]), batch[1])


@torch.inference_mode()
def classified(net: nn.Module, inputs: Tensor, labels: Tensor) -> Quality:
    """Mean cross-entropy and accuracy, 250 rows at a time."""
    logits = torch.cat([net(some) for some in torch.split(inputs, 250)])
    return Quality(float(cross_entropy(logits, labels)), float((logits.argmax(-1) == labels).float().mean()))
