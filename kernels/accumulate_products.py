"""Adds one step's products of gradients and weights to a window's sums.

For every element g of a gradient (times `scale`, where given), w of its weight and the step's weight k, in
float32:

    grad_weight += k * g * w

A product that is NaN or infinite adds nothing; a step of weight 0 or one that is skipped adds nothing. Plain
torch on any device, some passes over each parameter: it runs on request only. Source: Sanh et al. 2020, arXiv
2005.07683, whose movement is minus this sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradtrace.errors import MismatchError

__all__ = ["accumulate_products_"]


@torch.no_grad()
def accumulate_products_(
    grad_weight: Tensor,
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    offsets: Sequence[int],
    *,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    weight: int = 1,
) -> None:
    """Add to `grad_weight`, (N,) float32, in place and without a host sync on a GPU.

    `grads[k]` and `weights[k]`, of one shape and any floating dtypes, go in row-major order to the flat range
    from `offsets[k]` on. `scale`, `skip` and `weight` are as in `accumulate_`. Raises MismatchError for a
    gradient and a weight of different shapes.
    """
    if not weight:
        return
    live = None if skip is None else skip == 0
    for grad, values, offset in zip(grads, weights, offsets, strict=True):
        if grad.shape != values.shape:
            raise MismatchError(
                "gradient and weight", expected=f"shape {tuple(values.shape)}", got=f"{tuple(grad.shape)}"
            )
        wide = grad.float() if scale is None else grad.float() * scale.float()
        products = (wide * values.float()).nan_to_num_(0.0, 0.0, 0.0)
        if live is not None:
            products.mul_(live)
        grad_weight.narrow(0, offset, grad.numel()).add_(products.reshape(-1), alpha=weight)
