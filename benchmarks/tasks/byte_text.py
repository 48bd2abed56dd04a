"""Searched: the byte-level transformer of recipes/language.py on the same text, AdamW, and two others.

The recipe starts its embeddings small, which trains better. With torch's own start, fifty times as large,
what a byte is drowns what the blocks add, and how much masks differ is another story.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import byte_model
import language
import torch
from tasks.task import Batch, Quality, Task
from torch import Tensor, nn

__all__ = ["BYTE_TEXT", "LARGE_START_BYTE_TEXT", "SMALL_BYTE_TEXT"]


def _batches(seed: int, steps: int) -> Iterator[Batch]:
    return ((batch,) for batch in byte_model.batches(seed, steps, language.BATCH))


def _loss(net: nn.Module, batch: Batch) -> Tensor:
    return byte_model.loss_of(net, batch[0])


def _with_torchs_start() -> nn.Module:
    net = byte_model.ByteModel()
    nn.init.normal_(net.bytes.weight)
    nn.init.normal_(net.positions.weight)
    return net


BYTE_TEXT = Task(
    name="byte-text",
    searched=True,
    steps=1200,
    model=byte_model.ByteModel,
    optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=language.LR, weight_decay=language.DECAY),
    batches=_batches,
    loss=_loss,
    validate=lambda net: Quality(*byte_model.held_out(net, windows=128)),
    rate=language.schedule,
)

# For a look within minutes: 60 thousand weights instead of 800.
SMALL_BYTE_TEXT = replace(
    BYTE_TEXT,
    name="byte-text-small",
    model=lambda: byte_model.ByteModel(width=48, layers=2),
    validate=lambda net: Quality(*byte_model.held_out(net, windows=64)),
)

LARGE_START_BYTE_TEXT = replace(BYTE_TEXT, name="byte-text-large-start", model=_with_torchs_start)
