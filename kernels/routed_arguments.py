"""What comes before every form of `routed_linear`: checking the arguments, finding or making the plan."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtrace.errors import InvalidValueError, MismatchError, UnsupportedError
from gradtrace.kernels.activations import check_activation
from gradtrace.kernels.routing import Routing, routing_of

__all__ = ["DTYPES", "checked_routing"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def checked_routing(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    input_sizes: list[int],
    output_sizes: list[int],
    out_features: int,
    activation: str,
    times: Tensor | None,
) -> Routing:
    """The plan of these arguments of `routed_linear`.

    Raises InvalidValueError, MismatchError, UnknownNameError or UnsupportedError where they do not fit.
    """
    dtype, device = x.dtype, x.device
    fits = (
        dtype in DTYPES
        and x.dim()
        and (
            bias is None or (bias.shape == (out_features,) and bias.dtype == dtype and bias.device == device)
        )
        and (weight.dtype == dtype and weight.device == device)
        and (inputs.device == device and outputs.device == device and out_features >= 0)
    )
    if not fits:  # one token is computed in little more time than a careful look takes
        _refuse(x, weight, bias, inputs, outputs, out_features)
    if times is not None:
        _check_times(times, x, out_features)
    check_activation(activation)
    routing = routing_of(inputs, outputs, input_sizes, output_sizes, x.shape[-1], out_features)
    if weight.shape != (routing.weights,):
        raise MismatchError("weight", expected=f"shape ({routing.weights},)", got=str(tuple(weight.shape)))
    return routing


def _check_times(times: Tensor, x: Tensor, out_features: int) -> None:
    wanted = (*x.shape[:-1], out_features)
    if times.shape != wanted or times.dtype != x.dtype or times.device != x.device:
        raise MismatchError(
            "times",
            expected=f"{x.dtype} of shape {wanted} on {x.device}",
            got=f"{times.dtype} of shape {tuple(times.shape)} on {times.device}",
        )


def _refuse(
    x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, outputs: Tensor, out_features: int
) -> None:
    """Say what of the arguments does not fit."""
    if x.dtype not in DTYPES or x.dim() == 0:
        raise UnsupportedError(
            "x", expected="a floating-point tensor (..., inputs)", got=f"{x.dtype} of shape {tuple(x.shape)}"
        )
    if out_features < 0:
        raise InvalidValueError("out_features", expected="at least 0", got=str(out_features))
    if bias is not None and bias.shape != (out_features,):
        raise MismatchError("bias", expected=f"shape ({out_features},)", got=str(tuple(bias.shape)))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise MismatchError(f"the dtypes of x and {name}", expected=str(x.dtype), got=str(tensor.dtype))
    for name, tensor in (("weight", weight), ("bias", bias), ("inputs", inputs), ("outputs", outputs)):
        if tensor is not None and tensor.device != x.device:
            raise MismatchError(
                f"the devices of x and {name}", expected=str(x.device), got=str(tensor.device)
            )
