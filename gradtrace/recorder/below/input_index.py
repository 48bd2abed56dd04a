"""Which modules' inputs are summed, how many numbers they have, and where their sums lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from gradtrace.ledger.format import InputInfo
from gradtrace.recorder.below.kinds import kind_of
from gradtrace.recorder.below.linear import conv1d_of_gpt
from gradtrace.recorder.below.owners import Owner

__all__ = ["input_index"]


def input_index(owned: Iterable[Owner], numbers: Collection[int]) -> list[tuple[InputInfo, Owner]]:
    """Return the modules with input moments whose weight is one of these parameters, in the model's order."""
    found = []
    for owner in owned:
        info = _info(owner)
        if info is not None and owner.leaves.get("weight") in numbers:
            found.append((info, owner))
    return found


def _info(owner: Owner) -> InputInfo | None:
    """As many inputs and groups as the contribution to the module's weight has."""
    module: Any = owner.module
    if isinstance(module, nn.Embedding):
        return InputInfo(owner.name, module.num_embeddings, 0)
    if isinstance(module, nn.Linear):
        return InputInfo(owner.name, module.in_features, 1)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        patch = module.weight[0].numel()
        return InputInfo(
            owner.name, module.groups * patch, 0 if isinstance(module, nn.Conv3d) else module.groups
        )
    if kind_of(module) is conv1d_of_gpt:
        return InputInfo(owner.name, module.weight.shape[0], 1)
    return None
