"""Unseen: which package of the standard library a function is from, by its first bytes."""

from __future__ import annotations

from collections import Counter
from functools import cache

import torch
from byte_model import Block
from tasks.in_memory import classified, classifier_loss, shuffled_batches
from tasks.source_functions import functions
from tasks.task import Batch, Task
from torch import Tensor, nn

__all__ = ["FUNCTION_HOME"]

LENGTH, CLASSES, WIDTH = 96, 10, 64
MOST = 1000  # nearly so many are held out: each mask is judged on all of them


@cache
def _split() -> tuple[Batch, Batch]:
    """(inputs int64 (N, LENGTH), padded with 0, and labels int64 (N,)) to train on, and held out."""
    homes = Counter(function.home for function in functions())
    label = {home: place for place, (home, _) in enumerate(homes.most_common(CLASSES))}
    parts: list[Batch] = []
    for held_out in (False, True):
        some = [one for one in functions() if one.home in label and one.held_out == held_out]
        some = some[:: max(1, len(some) // MOST)] if held_out else some
        inputs = torch.zeros(len(some), LENGTH, dtype=torch.long)
        for row, one in enumerate(some):
            begin = torch.frombuffer(bytearray(one.source[:LENGTH]), dtype=torch.uint8)
            inputs[row, : len(begin)] = begin
        parts.append((inputs, torch.tensor([label[one.home] for one in some])))
    return parts[0], parts[1]


class Reader(nn.Module):
    """Two attention blocks over bytes, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(WIDTH, 4), Block(WIDTH, 4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, CLASSES) of int64 (batch, LENGTH)."""
        x = self.blocks(self.bytes(tokens) + self.positions(torch.arange(LENGTH)))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


FUNCTION_HOME = Task(
    name="function-home",
    searched=False,
    steps=600,
    model=Reader,
    optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05),
    batches=lambda seed, steps: shuffled_batches(_split()[0], seed, steps, 32),
    loss=classifier_loss,
    validate=lambda net: classified(net, *_split()[1]),
)
