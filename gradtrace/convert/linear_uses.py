"""The weights that multiply a layer's inputs and nothing else: nn.Linear's and Hugging Face's Conv1D's."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.convert.linear_layer import is_plain
from gradtrace.errors import InvalidValueError
from gradtrace.ledger.names import canonical

__all__ = ["LinearUse", "linear_uses"]

Item = TypeVar("Item", bound=np.generic)


@dataclass(frozen=True, eq=False)
class LinearUse:
    """A layer y = W x + b. `inputs_first`: its weight lies (I, O), as the Conv1D of GPT-2 keeps it.

    `obstacle` says in words why its weights cannot be refitted, and is empty where they can.
    """

    name: str
    module: nn.Module
    inputs_first: bool
    obstacle: str

    @property
    def parameter(self) -> Tensor:
        """The weight as it lies."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """(O,), or None."""
        return self.module._parameters.get("bias")

    @property
    def inputs(self) -> int:
        """I."""
        return self.parameter.shape[0 if self.inputs_first else 1]

    def weight(self) -> NDArray[np.float64]:
        """(O, I), a copy in float64; raises InvalidValueError where it is not finite."""
        values = self.outputs_first(self.parameter.detach().cpu().double().numpy())
        if not np.isfinite(values).all():
            raise InvalidValueError(
                f"weight of layer '{self.name}'", expected="finite numbers", got="NaN or infinity"
            )
        return values

    def outputs_first(self, values: NDArray[Item]) -> NDArray[Item]:
        """What lies as the weight does, as (O, I), and the other way round."""
        return np.ascontiguousarray(values.T) if self.inputs_first else values

    def write_(self, weight: Tensor, bias: Tensor | None) -> None:
        """Copy these values, in the parameters' own shapes, into the layer; a bias of None changes none."""
        self.parameter.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)


def linear_uses(model: nn.Module) -> dict[int, LinearUse]:
    """Every linear layer of `model` by the id of its weight, in the model's order.

    Where several layers share a weight it is listed once, with that as its obstacle.
    """
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for name, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                holders[id(parameter)].append((module, f"{canonical(name)}.{leaf}".lstrip(".")))
    found: dict[int, LinearUse] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in found or not _is_linear(module):
            continue
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        others = [place for one in own for owner, place in holders[id(one)] if owner is not module]
        obstacle = f"it shares '{others[0]}'" if others else ""
        if not all(is_plain(parameter) for parameter in own):
            obstacle = f"its weight is {weight.dtype} or of a kind of its own, not a plain float tensor"
        inputs_first = not isinstance(module, nn.Linear)
        found[id(weight)] = LinearUse(canonical(name), module, inputs_first, obstacle)
    return found


def _is_linear(module: nn.Module) -> bool:
    # A subclass that computes something else is none; attention's out_proj only adds a check on dtypes.
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward and "forward" not in vars(module)
    weight = module._parameters.get("weight")
    # Of Hugging Face's class by its name, so that nothing is imported.
    return type(module).__name__ == "Conv1D" and weight is not None and weight.ndim == 2
