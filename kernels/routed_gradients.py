"""The gradients of `routed_linear`: plain torch that never looks at an index value.

So it can be traced, compiled and differentiated itself.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

__all__ = ["gradients"]


def gradients(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    grad: Tensor,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Those of x and of the flat weight, where `wanted`; `grad` (..., out_features) is that of the sums."""
    tokens = prod(x.shape[:-1])
    flat_x, flat_grad = x.reshape(tokens, x.shape[-1]), grad.reshape(tokens, grad.shape[-1])
    shapes = list(zip(output_sizes, input_sizes, strict=True))
    flat = torch.split(weight, [n * k for n, k in shapes])
    matrices = [part.view(shape) for part, shape in zip(flat, shapes, strict=True)]
    sources, targets = torch.split(inputs, input_sizes), torch.split(outputs, output_sizes)
    grads = [flat_grad.index_select(1, target) for target in targets]
    grad_x = grad_weight = None
    if wanted[0]:
        grad_x = torch.zeros_like(flat_x)
        for part, matrix, source in zip(grads, matrices, sources, strict=True):
            grad_x = grad_x.index_add(1, source, part @ matrix)
        grad_x = grad_x.view(x.shape)
    if wanted[1]:
        parts = [
            (part.t() @ flat_x.index_select(1, source)).reshape(-1)
            for part, source in zip(grads, sources, strict=True)
        ]
        grad_weight = torch.cat(parts) if parts else torch.zeros_like(weight)
    return grad_x, grad_weight
