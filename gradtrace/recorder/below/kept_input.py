"""A layer's input, kept until its output's gradient arrives, without undoing activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["KeptInput"]


class _Keep(torch.autograd.Function):
    """Saves x the way autograd saves what a backward pass needs; its output is no part of any loss."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError


class KeptInput:
    """Holds x as autograd saves tensors: non-reentrant checkpointing frees and recomputes it."""

    def __init__(self, x: torch.Tensor) -> None:
        anchor = torch.empty(0, requires_grad=True)
        self._node: Any = _Keep.apply(anchor, x.detach()).grad_fn  # type: ignore[no-untyped-call]

    def take(self) -> torch.Tensor | None:
        """Return x, once; None at any further call."""
        if self._node is None:
            return None
        (x,) = self._node.saved_tensors
        self._node = None
        kept: torch.Tensor = x
        return kept
