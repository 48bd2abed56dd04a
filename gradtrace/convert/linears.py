"""The nn.Linear layers of a model: their canonical names, where they hang, and what forbids a conversion."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from gradtrace.ledger.names import canonical

__all__ = ["LinearLayer", "is_plain", "linears", "nearest", "replace"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """One nn.Linear: its first canonical name, every (parent, attribute) that holds it, and `obstacle`.

    `obstacle` says in words why it cannot be replaced, and is empty where it can.
    """

    name: str
    module: nn.Linear
    places: tuple[tuple[nn.Module, str], ...]
    obstacle: str

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.module.out_features, self.module.in_features

    @property
    def has_weight(self) -> bool:
        """Does it own its weight? Not where a hook computes it anew before every call."""
        return self.module._parameters.get("weight") is not None

    @property
    def timed(self) -> bool:
        """Can a layer like it be made and timed? Not where the weight is quantized, a DTensor or the like."""
        return is_plain(self.module.weight)


def linears(model: nn.Module) -> dict[str, LinearLayer]:
    """Every nn.Linear of `model` by canonical name, in the model's order; a shared layer is listed once.

    Subclasses are left out: they compute something else, or are read by their parent (attention's out_proj).
    """
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for name, module in model.named_modules():
        for attribute, child in module._modules.items():
            if child is not None:
                places[id(child)].append((module, attribute))
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                holders[id(parameter)].append((module, f"{canonical(name)}.{attribute}".lstrip(".")))
    found = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            held = tuple(places[id(module)])
            others = [place for owner, place in holders[id(module.weight)] if owner is not module]
            found[canonical(name)] = LinearLayer(
                canonical(name), module, held, _obstacle(module, held, others)
            )
    return found


def replace(layer: LinearLayer, module: nn.Module) -> None:
    """Put `module` wherever `layer` hangs, below torch.compile's wrapper where one wraps it alone."""
    for parent, attribute in layer.places:
        parent._modules[attribute] = module
        if attribute == "_orig_mod":
            from torch._dynamo import OptimizedModule  # takes a second to import, and is loaded here anyway

            if isinstance(parent, OptimizedModule):
                parent._initialize()  # the wrapper has bound the old module's call


def nearest(name: str, known: list[str]) -> str:
    """A remedy that names the closest of `known`."""
    close = get_close_matches(name, known, n=1, cutoff=0.0)
    return f"the nearest name is '{close[0]}'" if close else "the model has none"


def is_plain(weight: Tensor) -> bool:
    """Is it an ordinary tensor of a float dtype? Not where it is quantized, a DTensor or the like."""
    return type(weight.data) is torch.Tensor and weight.dtype in _DTYPES


def _obstacle(module: nn.Linear, places: tuple[tuple[nn.Module, str], ...], others: list[str]) -> str:
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a hook (pruning or weight norm): make that permanent first"
    if not is_plain(weight):
        return f"its weight is a {type(weight.data).__name__} of {weight.dtype}, not a plain float tensor"
    if not places:
        return "it is the whole model: wrap it, for instance in nn.Sequential"
    if others:
        return f"its weight is also '{others[0]}': converting it would untie them"
    if any(isinstance(parent, nn.TransformerEncoderLayer) for parent, _ in places):
        return "nn.TransformerEncoderLayer reads its weight directly on the fast path"
    if "forward" in vars(module):
        return "its forward has been replaced"
    return ""
