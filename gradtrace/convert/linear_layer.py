"""One linear map of a model, wherever its weight lies: nn.Linear, Conv1D, or a projection of an attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.convert.places import Places

__all__ = ["LinearLayer", "is_plain"]

Item = TypeVar("Item", bound=np.generic)

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """y = W x + b, by its canonical `name`, with W (outputs, inputs) and b (outputs,).

    W is the parameter `leaf` of `module`; transposed where `inputs_first`, as Hugging Face's Conv1D keeps it;
    its `rows` (begin, end) where several layers share it, as in the in_proj_weight of nn.MultiheadAttention.
    b is `bias_leaf`, or `bias_rows` of it. `holder` is what has to be replaced to convert the layer: the
    module itself, or the attention that reads its weights; it hangs at `places`. `obstacle` says in words why
    it cannot be replaced, and is empty where it can. `parameter_name` is the canonical name of W's parameter.
    """

    name: str
    module: nn.Module
    holder: nn.Module
    places: Places
    obstacle: str
    parameter_name: str
    leaf: str = "weight"
    bias_leaf: str = "bias"
    inputs_first: bool = False
    rows: tuple[int, int] | None = None
    bias_rows: tuple[int, int] | None = None

    @property
    def parameter(self) -> Tensor:
        """What W lies in."""
        value = getattr(self.module, self.leaf)
        assert isinstance(value, Tensor)
        return value

    @property
    def weight(self) -> Tensor:
        """W (outputs, inputs), a view without gradient."""
        value = self.parameter.detach()
        value = value if self.rows is None else value[self.rows[0] : self.rows[1]]
        return value.T if self.inputs_first else value

    @property
    def bias(self) -> Tensor | None:
        """The b (outputs,), a view without gradient, or None."""
        whole: Tensor | None = self.module._parameters.get(self.bias_leaf)
        if whole is None:
            return None
        whole = whole.detach()
        return whole if self.bias_rows is None else whole[self.bias_rows[0] : self.bias_rows[1]]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        outputs, inputs = self.weight.shape
        return outputs, inputs

    @property
    def has_weight(self) -> bool:
        """Does it own its weight? Not where a hook computes it anew before every call."""
        return self.module._parameters.get(self.leaf) is not None

    @property
    def timed(self) -> bool:
        """Can a layer like it be made and timed? Not where the weight is quantized, a DTensor or the like."""
        return is_plain(self.parameter)

    def of_parameter(self, values: NDArray[Item]) -> NDArray[Item]:
        """What of an array in the parameter's shape is this layer's, as (outputs, inputs); a view."""
        part = values if self.rows is None else values[self.rows[0] : self.rows[1]]
        return part.T if self.inputs_first else part

    def linear(self) -> nn.Linear:
        """The layer as an nn.Linear: itself, or one on the same memory, made for the moment.

        What it shares is not trained through it: its parameters are of its own wherever they are only a part.
        """
        if isinstance(self.module, nn.Linear):
            return self.module
        outputs, inputs = self.shape
        bias: nn.Parameter | None = self.module._parameters.get(self.bias_leaf)
        made = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        made.weight = nn.Parameter(self.weight, requires_grad=self.parameter.requires_grad)
        if bias is not None and self.bias_rows is not None:
            part = bias.detach()[self.bias_rows[0] : self.bias_rows[1]]
            bias = nn.Parameter(part, requires_grad=bias.requires_grad)
        made.register_parameter("bias", bias)
        return made.train(self.module.training)


def is_plain(weight: Tensor) -> bool:
    """Is it an ordinary tensor of a float dtype? Not where it is quantized, a DTensor or the like."""
    return type(weight.data) is torch.Tensor and weight.dtype in _DTYPES
