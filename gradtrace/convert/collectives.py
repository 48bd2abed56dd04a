"""What ranks that share the work of a layer exchange, forwards and backwards: one collective each way.

All ranks call the layer on the same input and go on from the same output, so a loss is the same on all, and a
gradient of what they all hold must come out the same (the f and g of Shoeybi et al., 2019, Megatron-LM).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed
from torch.autograd import Function
from torch.distributed import ProcessGroup

__all__ = ["entered", "gathered", "summed"]


def entered(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """`x` itself; its gradient is the sum over the ranks, each of which uses a part of it."""
    if not x.requires_grad:
        return x
    return _Entered.apply(x, group)  # type: ignore[no-untyped-call, no-any-return]


def summed(y: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of every rank's `y`; its gradient is that of the sum."""
    return _Summed.apply(y, group)  # type: ignore[no-untyped-call, no-any-return]


def gathered(y: Tensor, order: Tensor, mine: Tensor, widest: int, group: ProcessGroup | None) -> Tensor:
    """Each rank's columns `y` (..., at most widest) in the order of the outputs: (..., len(order)).

    `order` (outputs,) counts in the ranks' columns side by side, `widest` of each, filled up with zeros;
    `mine` are the outputs that this rank's columns are.
    """
    return _Gathered.apply(y, order, mine, widest, group)  # type: ignore[no-untyped-call, no-any-return]


class _Entered(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()  # others may hold the same gradient
        distributed.all_reduce(total, group=ctx.group)
        return total, None


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, group: ProcessGroup | None) -> Tensor:
        total = y.contiguous().clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gathered(Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, order: Tensor, mine: Tensor, widest: int, group: ProcessGroup | None
    ) -> Tensor:
        ctx.save_for_backward(mine)
        ranks = distributed.get_world_size(group)
        rows = y.shape[:-1].numel()
        own = y.new_zeros(rows, widest)
        own[:, : y.shape[-1]] = y.reshape(rows, y.shape[-1])
        every = own.new_empty(ranks * rows, widest)
        distributed.all_gather_into_tensor(every, own, group=group)
        beside = every.view(ranks, rows, widest).transpose(0, 1).reshape(rows, ranks * widest)
        return beside.index_select(1, order).view(*y.shape[:-1], len(order))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (mine,) = ctx.saved_tensors
        return grads[0].index_select(-1, mine), None, None, None, None
