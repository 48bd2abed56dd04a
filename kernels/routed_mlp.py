"""Two linear layers of a decomposed MLP and what lies between, block by block: what is hidden stays at hand.

For blocks s = 1..S with inputs I_s, hidden units H_s and outputs O_s, weights U_s and G_s (m_s, k_s) and
D_s (n_s, m_s), and for every token x:

    h[H_s] = a(U_s x[I_s] + b)    or, gated,    h[H_s] = a(G_s x[I_s] + c) * (U_s x[I_s] + b)
    y = d (or 0);    y[O_s] += D_s h[H_s]    for every s

That is `routed_linear` twice, which is the reference. Where each block's hidden units are its own and lie in
order, and no output is in two blocks, a block's hidden values need not leave the cache (on a CPU) or the
registers (on a GPU, for blocks that fit). Source: arXiv 2601.15871 for the blocks; the kernels are our own.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from gradtrace.kernels.activations import activate, derivative
from gradtrace.kernels.optional_triton import triton
from gradtrace.kernels.routed_arguments import checked_routing
from gradtrace.kernels.routed_backward import gradients_at_hand
from gradtrace.kernels.routed_linear import routed_linear, routed_linear_reference
from gradtrace.kernels.routed_linear_cpu import compiled_products
from gradtrace.kernels.routed_mlp_cpu import routed_mlp_cpu, worth_fusing
from gradtrace.kernels.routed_mlp_triton import fits, routed_mlp_triton

__all__ = ["routed_mlp", "routed_mlp_reference"]


def routed_mlp(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    inputs: Tensor,
    hidden: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    hidden_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
    activation: str = "gelu",
    gate: Tensor | None = None,
    gate_bias: Tensor | None = None,
) -> Tensor:
    """Apply the blocks to `x` (..., I); return (..., out_features) of the same dtype, contiguous.

    `up` and `gate` (sum m_s * k_s,) and `down` (sum n_s * m_s,) hold the blocks one after another, each
    row-major; `inputs` (sum k_s,), `hidden` (H,) and `outputs` (sum n_s,) are int64, cut by the sizes k_s,
    m_s and n_s; the fused forms want `hidden` to be 0, 1, .., H - 1. `up_bias` and `gate_bias` are (H,),
    `down_bias` (out_features,), each or None. Dtypes, activations and errors are those of `routed_linear`.
    Differentiable in x, weights and biases.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, up, down = x.to(dtype), up.to(dtype), down.to(dtype)
        up_bias, down_bias, gate, gate_bias = (
            None if tensor is None else tensor.to(dtype) for tensor in (up_bias, down_bias, gate, gate_bias)
        )
    tensors = (x, up, up_bias, down, down_bias, gate, gate_bias)
    args = (
        *tensors[:5], inputs, hidden, outputs, input_sizes, hidden_sizes, output_sizes, out_features,
        activation, gate, gate_bias,
    )  # fmt: skip
    training = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
    if training or (not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()):
        return _twice(routed_linear, *args)  # what backward needs is kept
    if type(x) is Tensor and not torch.compiler.is_compiling():
        return _routed_mlp(*args)
    result: Tensor = torch.ops.gradtrace.routed_mlp(*args)
    return result


def routed_mlp_reference(*args: Any) -> Tensor:
    """Do what `routed_mlp` does, with its arguments, in plain torch on any device and without autograd."""
    return _twice(routed_linear_reference, *args)


def _twice(
    layer: Any,
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    inputs: Tensor,
    hidden: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    hidden_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
    activation: str = "gelu",
    gate: Tensor | None = None,
    gate_bias: Tensor | None = None,
) -> Tensor:
    """The MLP as calls of `layer`."""
    above = (inputs, hidden, input_sizes, hidden_sizes, hidden.numel())
    if gate is None:
        inside = layer(x, up, up_bias, *above, activation)
    else:
        inside = layer(x, gate, gate_bias, *above, activation, layer(x, up, up_bias, *above))
    y: Tensor = layer(inside, down, down_bias, hidden, outputs, hidden_sizes, output_sizes, out_features)
    return y


def _routed_mlp(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    inputs: Tensor,
    hidden: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    hidden_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
    activation: str = "gelu",
    gate: Tensor | None = None,
    gate_bias: Tensor | None = None,
) -> Tensor:
    tensors = (x, up, up_bias, down, down_bias)
    compiled = x.is_cpu and x.dtype == torch.float32 and compiled_products() is not None
    on_gpu = x.is_cuda and x.dtype != torch.float64 and triton is not None
    if (compiled or on_gpu) and hidden.numel():
        units = hidden.numel()
        above = checked_routing(
            x, up, up_bias, inputs, hidden, input_sizes, hidden_sizes, units, activation, None
        )
        if gate is not None:
            checked_routing(
                x, gate, gate_bias, inputs, hidden, input_sizes, hidden_sizes, units, activation, None
            )
        # x stands for what is hidden, whose features it does not have: they are those of `hidden`.
        below = checked_routing(
            x.new_empty((0, units)), down, down_bias, hidden, outputs, hidden_sizes, output_sizes,
            out_features, activation, None,
        )  # fmt: skip
        whole = len(above.blocks) == len(below.blocks) == len(input_sizes) and not above.merges
        if whole and not below.overlapping:
            if compiled and worth_fusing(x, above):
                return routed_mlp_cpu(*tensors, above, below, activation, gate, gate_bias)
            if on_gpu and fits(above, below):
                return routed_mlp_triton(*tensors, above, below, activation, gate, gate_bias)
    return _twice(
        routed_linear, *tensors, inputs, hidden, outputs, input_sizes, hidden_sizes, output_sizes,
        out_features, activation, gate, gate_bias,
    )  # fmt: skip


_routed_mlp_op = torch.library.custom_op(
    "gradtrace::routed_mlp",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor up, Tensor? up_bias, Tensor down, Tensor? down_bias, Tensor inputs, "
        "Tensor hidden, Tensor outputs, SymInt[] input_sizes, SymInt[] hidden_sizes, SymInt[] output_sizes, "
        'SymInt out_features, str activation="gelu", Tensor? gate=None, Tensor? gate_bias=None) -> Tensor'
    ),
)(_routed_mlp)


@_routed_mlp_op.register_fake
def _routed_mlp_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[10]))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.sizes, ctx.activation = inputs[8:12], inputs[12]
    ctx.save_for_backward(*inputs[:8], *inputs[13:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """What is hidden is computed again: it never left the chip."""
    x, up, up_bias, down, down_bias, inputs, hidden, outputs, gate, gate_bias = ctx.saved_tensors
    input_sizes, hidden_sizes, output_sizes, _ = ctx.sizes
    above = (inputs, hidden, input_sizes, hidden_sizes)
    layer = torch.ops.gradtrace.routed_linear
    z = layer(x, up, up_bias, *above, hidden.numel())
    inner = z if gate is None else layer(x, gate, gate_bias, *above, hidden.numel())
    activated = activate(inner, ctx.activation)
    inside = activated if gate is None else activated * z
    grad_inside, grad_down = gradients_at_hand(
        inside, down, hidden, outputs, hidden_sizes, output_sizes, grad
    )
    assert grad_inside is not None
    slope = derivative(inner, ctx.activation)
    grad_gate = grad_gate_bias = grad_x_gate = None
    if gate is None:
        grad_z = grad_inside * slope
    else:
        grad_z, grad_inner = grad_inside * activated, grad_inside * z * slope
        grad_x_gate, grad_gate = gradients_at_hand(x, gate, *above, grad_inner)
        grad_gate_bias = None if gate_bias is None else _summed(grad_inner)
    grad_x, grad_up = gradients_at_hand(x, up, *above, grad_z)
    if grad_x is not None and grad_x_gate is not None:
        grad_x = grad_x + grad_x_gate
    return (
        grad_x,
        grad_up,
        None if up_bias is None else _summed(grad_z),
        grad_down,
        None if down_bias is None else _summed(grad),
        *(None,) * 8,
        grad_gate,
        grad_gate_bias,
    )


def _summed(grad: Tensor) -> Tensor:
    return grad.reshape(prod(grad.shape[:-1]), grad.shape[-1]).sum(0)


_routed_mlp_op.register_autograd(_backward, setup_context=_keep_for_backward)
