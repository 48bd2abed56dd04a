"""A linear layer as a list of small dense products: gather the inputs, multiply, scatter the outputs.

For sub-operators s = 1..S with inputs I_s, outputs O_s and weights W_s (n_s, k_s), and for every token x:

    z = bias (or 0);    z[O_s] += W_s x[I_s]    for every s;    y = a(z) * times

with an activation a, and the results of another layer as `times`, where they are given. Sub-operators may
share inputs and outputs; an output in none of them is its bias. Source: arXiv 2601.15871, which runs the
independent blocks of a decomposed weight as index-routed operators; the kernels are our own.

One idea a file: `routed_arguments` checks and plans, `routed_linear_reference` is plain torch, the oracle;
`routed_linear_triton` the launch on a GPU; `routed_linear_cpu` the compiled call on a CPU. What cannot run
here gives way to the reference.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from gradtrace.errors import UnsupportedError
from gradtrace.kernels.activations import activate, check_activation, derivative
from gradtrace.kernels.optional_triton import triton
from gradtrace.kernels.routed_arguments import checked_routing
from gradtrace.kernels.routed_backward import gradients_at_hand
from gradtrace.kernels.routed_linear_cpu import compiled_products, routed_linear_cpu
from gradtrace.kernels.routed_linear_reference import routed_linear_plain
from gradtrace.kernels.routed_linear_triton import routed_linear_triton

__all__ = ["routed_linear", "routed_linear_reference"]


def routed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
    activation: str = "none",
    times: Tensor | None = None,
) -> Tensor:
    """Apply the sub-operators to `x` (..., I); return (..., out_features) of the same dtype, contiguous.

    `weight` (sum n_s * k_s,) holds the blocks W_s one after another, each row-major; `inputs` (sum k_s,) and
    `outputs` (sum n_s,) are int64, cut by the sizes k_s and n_s; `bias` is (out_features,) or None.
    `activation` is "none", "relu", "gelu", "silu" or "gelu_tanh"; `times`, of the result's shape and
    dtype, is what its values are multiplied by.
    float32, bfloat16, float16 or float64, summed in at least float32 in each product; under autocast as
    `F.linear`. Differentiable in x, weight, bias and times. On a GPU one Triton launch computes all
    sub-operators; on a CPU with a C compiler one call does, for float32.

    Raises InvalidValueError, MismatchError, UnknownNameError or UnsupportedError for arguments that do not
    fit together.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        times = None if times is None else times.to(dtype)
    plain = (x, weight, bias, inputs, outputs, input_sizes, output_sizes, out_features)
    training = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, weight, bias, times)
    )
    if training and (activation != "none" or times is not None):
        # What backward needs is kept: after the fused call it would have to be computed again.
        check_activation(activation)
        y = activate(routed_linear(*plain), activation)
        return y if times is None else y * times
    if not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            raise UnsupportedError(
                "routed_linear inside a torch.func transform",
                expected="a plain or compiled call",
                remedy="use backward() instead",
            )
        if type(x) is Tensor and not training:
            # Without the dispatcher, which costs as much as a small product.
            return _routed_linear(*plain, activation, times)
    result: Tensor = torch.ops.gradtrace.routed_linear(*plain, activation, times)
    return result


def routed_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
    activation: str = "none",
    times: Tensor | None = None,
) -> Tensor:
    """Do what `routed_linear` does, in plain torch on any device and without autograd."""
    routing = checked_routing(
        x, weight, bias, inputs, outputs, input_sizes, output_sizes, out_features, activation, times
    )
    return routed_linear_plain(x, weight, bias, routing, activation, times)


def _routed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
    activation: str = "none",
    times: Tensor | None = None,
) -> Tensor:
    routing = checked_routing(
        x, weight, bias, inputs, outputs, input_sizes, output_sizes, out_features, activation, times
    )
    run = routed_linear_plain
    if x.is_cuda:
        run = routed_linear_triton if triton is not None and x.dtype != torch.float64 else run
    elif x.dtype == torch.float32 and x.is_cpu and compiled_products() is not None:
        run = routed_linear_cpu
    return run(x, weight, bias, routing, activation, times)


_routed_linear_op = torch.library.custom_op(
    "gradtrace::routed_linear",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor weight, Tensor? bias, Tensor inputs, Tensor outputs, SymInt[] input_sizes, "
        'SymInt[] output_sizes, SymInt out_features, str activation="none", Tensor? times=None) -> Tensor'
    ),
)(_routed_linear)


@_routed_linear_op.register_fake
def _routed_linear_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[6]))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, sources, targets, ctx.input_sizes, ctx.output_sizes, ctx.out_features = inputs[:8]
    ctx.activation, times = inputs[8:]
    ctx.save_for_backward(x, weight, bias, sources, targets, times)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, inputs, outputs, times = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_times = None
    if ctx.activation != "none" or times is not None:
        sizes = (ctx.input_sizes, ctx.output_sizes, ctx.out_features)
        z = torch.ops.gradtrace.routed_linear(x, weight, bias, inputs, outputs, *sizes)
        if times is not None:
            grad_times, grad = grad * activate(z, ctx.activation), grad * times
        grad = grad * derivative(z, ctx.activation)
    grad_x, grad_weight = gradients_at_hand(
        x, weight, inputs, outputs, ctx.input_sizes, ctx.output_sizes, grad, (need_x, need_weight)
    )
    grad_bias = (
        grad.reshape(prod(grad.shape[:-1]), grad.shape[-1]).sum(0) if bias is not None and need_bias else None
    )
    return grad_x, grad_weight, grad_bias, None, None, None, None, None, None, grad_times


_routed_linear_op.register_autograd(_backward, setup_context=_keep_for_backward)
