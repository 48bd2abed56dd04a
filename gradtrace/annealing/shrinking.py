"""What presses weights towards zero while a model anneals, after each step and apart from the gradients.

A soft threshold of learning rate * strength, the proximal step of an L1 term: gradients stay those of the
loss, so that the ledger records them as they are, neither clipping nor an fp16 scale comes in between, and
Adam does not turn a light term into a heavy one. Of the group lasso the reweighted form: within a stage the
norms are those at its beginning, so that a shard needs nothing of the others.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradtrace.annealing.masking import local

__all__ = ["shrink_"]


@torch.no_grad()
def shrink_(
    groups: Iterable[Mapping[str, Any]],
    chosen: Container[nn.Parameter],
    l1: float,
    pressed: Mapping[nn.Parameter, Tensor],
) -> None:
    """Shrink those of an optimizer's parameters that are `chosen`, at the learning rate of their group.

    `pressed`: parameter -> factor, of the shape of what this rank holds; each weight also loses its share
    min(1, learning rate * factor).
    """
    for group in groups:
        rate = float(group["lr"])
        for parameter in group["params"]:
            if parameter not in chosen:
                continue
            part = local(parameter)
            if l1 > 0:
                part.copy_(nn.functional.softshrink(part, rate * l1))
            if parameter in pressed:
                part.mul_((1 - rate * pressed[parameter]).clamp_(min=0))
