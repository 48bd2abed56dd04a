"""A small model and its training: all of it a function of the step alone, so that a resumed run replays."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["INPUTS", "STEPS", "UNFREEZE_AT", "loss_of", "new_model", "prepare"]

STEPS = 40
# In the middle of a window and of an entry: from here on the ledger needs a second layout.
UNFREEZE_AT = 17
INPUTS = 96


def new_model() -> nn.Sequential:
    """Two layers, the second frozen until `UNFREEZE_AT`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))


def prepare(model: nn.Sequential, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Freeze or unfreeze, and set the learning rate, as that step wants it."""
    model[3].requires_grad_(step >= UNFREEZE_AT)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 / (1 + step // 7)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    """The loss on that step's batch, with that step's dropout."""
    torch.manual_seed(step)
    inputs = torch.randn(16, INPUTS).relu()
    return nn.functional.cross_entropy(model(inputs), torch.randint(0, 10, (16,)))
