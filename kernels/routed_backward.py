"""Which gradients run: the launches on a GPU, as an operator of their own, or plain torch.

A gradient that is to be differentiated again is always plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradtrace.kernels.optional_triton import triton
from gradtrace.kernels.routed_gradients import gradients
from gradtrace.kernels.routed_gradients_triton import gradients_triton

__all__ = ["gradients_at_hand"]


def gradients_at_hand(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    grad: Tensor,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Do what `routed_gradients.gradients` does, as fast as it can be done here."""
    args = (x, weight, inputs, outputs, input_sizes, output_sizes, grad)
    if not _on_gpu(x) or torch.is_grad_enabled():
        return gradients(*args, wanted)
    grad_x, grad_weight = torch.ops.gradtrace.routed_linear_backward(*args, *wanted)
    return grad_x if wanted[0] else None, grad_weight if wanted[1] else None


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


@torch.library.custom_op(
    "gradtrace::routed_linear_backward",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor weight, Tensor inputs, Tensor outputs, SymInt[] input_sizes, "
        "SymInt[] output_sizes, Tensor grad, bool need_x, bool need_weight) -> (Tensor, Tensor)"
    ),
)
def _backward_op(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    grad: Tensor,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of weight; what is not needed is empty."""
    run = gradients_triton if x.is_cuda and triton is not None and x.dtype != torch.float64 else gradients
    found = run(x, weight, inputs, outputs, input_sizes, output_sizes, grad, (need_x, need_weight))
    grad_x, grad_weight = (x.new_empty(0) if one is None else one.contiguous() for one in found)
    return grad_x, grad_weight


@_backward_op.register_fake
def _backward_fake(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    grad: Tensor,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), weight.new_empty(weight.shape if need_weight else (0,))
