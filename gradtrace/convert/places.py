"""Where modules hang in a model, and hanging another one there."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

__all__ = ["Places", "held_times", "places_of", "put"]

Places = tuple[tuple[nn.Module, str], ...]
"""Every (parent, attribute) that holds a module."""


def places_of(model: nn.Module) -> dict[int, Places]:
    """The places of every module of `model`, by its id; none for the model itself."""
    found: dict[int, Places] = defaultdict(tuple)
    for module in model.modules():
        for attribute, child in module._modules.items():
            if child is not None:
                found[id(child)] += ((module, attribute),)
    return found


def held_times(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter, by its id."""
    found: dict[int, int] = defaultdict(int)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found[id(parameter)] += 1
    return found


def put(module: nn.Module, places: Places) -> None:
    """Put `module` at every place, below torch.compile's wrapper where one wraps it alone."""
    for parent, attribute in places:
        parent._modules[attribute] = module
        if attribute == "_orig_mod":
            from torch._dynamo import OptimizedModule  # takes a second to import, and is loaded here anyway

            if isinstance(parent, OptimizedModule):
                parent._initialize()  # the wrapper has bound the old module's call
