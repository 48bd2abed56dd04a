"""The part of a layer of sub-operators that one rank runs, and its meeting with the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from gradtrace.convert.collectives import entered, gathered, summed
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["PlacedLinear", "writing_part"]

Indices = NDArray[np.int64]


class PlacedLinear(nn.Module):
    """A layer whose input and output all ranks hold, and of whose weights each holds its own.

    `local` is this rank's part, a RoutedLinear without bias; `bias` is on all ranks, with the same gradient
    on each. Where no output is on two ranks, and each has one, they gather their columns; otherwise partial
    sums are added up. In an MLP that shares blocks, the layer that reads takes the hidden units that its rank
    `reads` as input.
    """

    order: Tensor | None
    mine: Tensor | None

    def __init__(
        self,
        layer: RoutedLinear,
        on_ranks: Sequence[Sequence[int]],
        rank: int,
        group: ProcessGroup | None,
        reads: Indices | None = None,
    ) -> None:
        super().__init__()
        parts = layer.sub_operators
        outputs = [_union([parts[number].outputs for number in numbers]) for numbers in on_ranks]
        disjoint = all(map(len, outputs)) and sum(map(len, outputs)) == len(_union(outputs))
        self.widest, order = _side_by_side(outputs, layer.out_features)
        self.register_buffer("order", torch.from_numpy(order) if disjoint else None, persistent=False)
        own = torch.from_numpy(outputs[rank]) if disjoint else None
        self.register_buffer("mine", own, persistent=False)
        writes = outputs[rank] if disjoint else np.arange(layer.out_features)
        self.local = _part(layer, on_ranks[rank], reads, writes, bias=False)
        self.bias = layer.bias
        self.enters = reads is None
        self.group = group
        self.to(layer.weight.device)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's own name: layer(input=x) works
        """`input` (..., in_features), the same on all ranks -> (..., out_features), the same on all ranks."""
        y: Tensor = self.local(entered(input, self.group) if self.enters else input)
        if self.order is None:
            y = summed(y, self.group)
        else:
            assert self.mine is not None
            y = gathered(y, self.order, self.mine, self.widest, self.group)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Writing(nn.Module):
    """The layer of an MLP that writes hidden units: this rank's own, for no other to see."""

    def __init__(self, local: RoutedLinear, group: ProcessGroup | None) -> None:
        super().__init__()
        self.local = local
        self.group = group
        self.train(local.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """`input` (..., in_features), the same on all ranks -> (..., this rank's hidden units)."""
        y: Tensor = self.local(entered(input, self.group))
        return y


def writing_part(
    layer: RoutedLinear, numbers: Sequence[int], hidden: Indices, group: ProcessGroup | None
) -> nn.Module:
    """The part of a layer that writes this rank's `hidden` units, in their order."""
    return _Writing(_part(layer, numbers, None, hidden, bias=True), group)


@torch.no_grad()
def _part(
    layer: RoutedLinear, numbers: Sequence[int], reads: Indices | None, writes: Indices, *, bias: bool
) -> RoutedLinear:
    """The sub-operators with these numbers, counting in the units read (all if None) and written."""
    every, blocks = layer.sub_operators, layer.blocks(layer.weight)
    parts = []
    for number in numbers:
        inputs = every[number].inputs
        inputs = inputs if reads is None else np.searchsorted(reads, inputs)
        parts.append(SubOperator(inputs, np.searchsorted(writes, every[number].outputs)))
    # A rank without a hidden unit gets one that nobody uses: tensors without a column are nobody's strength.
    wide = layer.in_features if reads is None else max(len(reads), 1)
    old = layer.weight
    bias = bias and layer.bias is not None
    part = RoutedLinear(wide, max(len(writes), 1), parts, bias=bias, device=old.device, dtype=old.dtype)
    if numbers:
        part.weight.copy_(torch.cat([blocks[number].reshape(-1) for number in numbers]))
    part.weight.requires_grad_(old.requires_grad)
    if part.bias is not None and layer.bias is not None:
        part.bias[: len(writes)].copy_(layer.bias[torch.from_numpy(writes).to(old.device)])
        part.bias.requires_grad_(layer.bias.requires_grad)
    return part.train(layer.training)


def _union(indices: Sequence[Indices]) -> Indices:
    return np.unique(np.concatenate([np.empty(0, np.int64), *indices]))


def _side_by_side(outputs: Sequence[Indices], out_features: int) -> tuple[int, Indices]:
    """Columns of each rank, and where each output is in the ranks' columns side by side.

    An output that no rank computes is in a column of zeros that rank 0 then has beyond its own.
    """
    dead = sum(map(len, outputs)) < out_features
    widest = max(map(len, outputs)) + dead
    order = np.full(out_features, widest - 1, np.int64)
    for rank, written in enumerate(outputs):
        order[written] = rank * widest + np.arange(len(written))
    return widest, order
