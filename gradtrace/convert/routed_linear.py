"""The linear layer that runs as sub-operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.kernels.routed_linear import routed_linear
from gradtrace.kernels.routed_linear_cpu import compiled_products
from gradtrace.structure.plan import DENSE, LayerPlan
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["RoutedLinear"]

_COPIED = 1 << 20  # weights at a time: a layer of any size takes little more memory than its new weights


class RoutedLinear(nn.Module):
    """y[..., outputs_s] += x[..., inputs_s] @ W_s^T over all sub-operators s, starting from the bias.

    `weight` is flat: the W_s (len(outputs_s), len(inputs_s)) one after the other, each row-major. `inputs`
    and `outputs` are the int64 indices one after the other, cut by the lists `input_sizes` and
    `output_sizes`. A layer made here holds zeros; `from_linear` makes one with weights.

    Raises:
        InvalidValueError: an index outside the layer.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    inputs: Tensor
    outputs: Tensor
    dense_class: type[nn.Module] = nn.Linear
    """What `to_dense_` makes of it: nn.Linear, or the Conv1D that it replaced."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sub_operators: Sequence[SubOperator],
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for what, features, listed in (
            ("inputs", in_features, [part.inputs for part in sub_operators]),
            ("outputs", out_features, [part.outputs for part in sub_operators]),
        ):
            flat = np.concatenate([np.empty(0, dtype=np.int64), *listed])
            if flat.size and flat.max() >= features:
                raise InvalidValueError(
                    f"{what} of the sub-operators", expected=f"indices below {features}", got=str(flat.max())
                )
            self.register_buffer(what, torch.from_numpy(flat).to(device))
        self.in_features = in_features
        self.out_features = out_features
        self.input_sizes = [len(part.inputs) for part in sub_operators]
        self.output_sizes = [len(part.outputs) for part in sub_operators]
        size = sum(part.size for part in sub_operators)
        self.weight = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        if self.weight.is_cpu:
            compiled_products()  # here, so that no forward pass waits for a compiler

    @classmethod
    def from_linear(cls, linear: nn.Linear, layer_plan: LayerPlan) -> RoutedLinear:
        """The layer that equals `linear` with everything zeroed that the plan's mask drops.

        The weights are copied; the bias is the linear's own Parameter. Device, dtype, requires_grad and mode
        stay.

        Raises:
            MismatchError: the plan is for another shape.
            InvalidValueError: the plan is "dense".
        """
        if layer_plan.choice == DENSE:
            raise InvalidValueError(
                "layer plan", expected="sub-operators", got=f'"{DENSE}": {layer_plan.reason}'
            )
        if layer_plan.mask.shape != tuple(linear.weight.shape):
            raise MismatchError(
                "the plan is for another layer",
                expected=f"weight of shape {layer_plan.mask.shape}",
                got=str(tuple(linear.weight.shape)),
            )
        old = linear.weight.detach()
        routed = cls(
            linear.in_features,
            linear.out_features,
            layer_plan.sub_operators,
            bias=linear.bias is not None,
            device=old.device,
            dtype=old.dtype,
        )
        at_once = max(1, _COPIED // max(linear.in_features, 1))
        blocks = routed.blocks(routed.weight.detach())
        for block, part in zip(blocks, layer_plan.sub_operators, strict=True):
            inputs = torch.from_numpy(part.inputs.copy()).to(old.device)
            for begin in range(0, len(part.outputs), at_once):
                rows = part.outputs[begin : begin + at_once]
                dropped = torch.from_numpy(~layer_plan.mask[np.ix_(rows, part.inputs)]).to(old.device)
                values = old.index_select(0, torch.from_numpy(rows.copy()).to(old.device))
                values = values.index_select(1, inputs).masked_fill_(dropped, 0)
                block[begin : begin + at_once].copy_(values)
        routed.weight.requires_grad_(linear.weight.requires_grad)
        routed.bias = linear.bias
        return routed.train(linear.training)

    @property
    def sub_operators(self) -> tuple[SubOperator, ...]:
        """The structure, as plain arrays."""
        inputs, outputs = self._indices()
        return tuple(
            SubOperator(i.cpu().numpy(), o.cpu().numpy()) for i, o in zip(inputs, outputs, strict=True)
        )

    def blocks(self, weight: Tensor) -> list[Tensor]:
        """Views (len(outputs_s), len(inputs_s)) of a flat `weight`, one per sub-operator."""
        shapes = list(zip(self.output_sizes, self.input_sizes, strict=True))
        flat = torch.split(weight, [rows * columns for rows, columns in shapes])
        return [part.view(shape) for part, shape in zip(flat, shapes, strict=True)]

    def to_dense(self) -> Tensor:
        """The weight (out_features, in_features) of the nn.Linear that this layer equals; gradients flow."""
        dense: Tensor = self.weight.new_zeros(self.out_features, self.in_features)
        for block, inputs, outputs in zip(self.blocks(self.weight), *self._indices(), strict=True):
            dense.index_put_((outputs[:, None], inputs[None, :]), block, accumulate=True)
        return dense

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's own name: layer(input=x) works
        """`input` (..., in_features) -> (..., out_features)."""
        if input.shape[-1] != self.in_features:
            raise MismatchError(
                "input of a RoutedLinear",
                expected=f"(..., {self.in_features})",
                got=str(tuple(input.shape)),
            )
        return routed_linear(
            input,
            self.weight,
            self.bias,
            self.inputs,
            self.outputs,
            self.input_sizes,
            self.output_sizes,
            self.out_features,
        )

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, sub_operators={len(self.input_sizes)}, "
            f"weights={self.weight.numel()}"
        )

    def _indices(self) -> tuple[list[Tensor], list[Tensor]]:
        inputs, outputs = (
            torch.split(self.inputs, self.input_sizes),
            torch.split(self.outputs, self.output_sizes),
        )
        return list(inputs), list(outputs)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # The sizes are no tensors, so indices of another structure must not be copied over these.
        for name in ("inputs", "outputs"):
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and not torch.equal(
                given.to(getattr(self, name).device), getattr(self, name)
            ):
                error_msgs.append(
                    f"{prefix}{name} is of another structure: convert with the plan it was made with"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
