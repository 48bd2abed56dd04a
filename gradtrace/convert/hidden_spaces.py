"""All hidden units of a model whose order may change, and why the order of others may not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from gradtrace.convert.hidden_space import HiddenSpace
from gradtrace.convert.known_spaces import known_spaces
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.matching import check_hooks
from gradtrace.convert.places import held_times
from gradtrace.convert.traced_spaces import traced_spaces
from gradtrace.errors import UnsupportedError

__all__ = ["hidden_spaces"]


def hidden_spaces(model: nn.Module, layers: Mapping[str, LinearLayer]) -> list[HiddenSpace]:
    """Those of known modules, then those found by tracing beside them."""
    known = known_spaces(model, layers)
    taken = {(member.layer, member.outputs) for space in known for member in space.members}
    traced = [
        space
        for space in traced_spaces(model, layers)
        if not any((member.layer, member.outputs) in taken for member in space.members)
    ]
    held = held_times(model)
    found = []
    for space in (*known, *traced):
        said = [space.why_not, *(_obstacle(layers[member.layer], held) for member in space.members)]
        found.append(replace(space, why_not=next((one for one in said if one), "")))
    return found


def _obstacle(layer: LinearLayer, held: Mapping[int, int]) -> str:
    if layer.obstacle:
        return f"'{layer.name}' has to stay as it is: {layer.obstacle}"
    if len(layer.places) > 1 or any(held[id(one)] > 1 for one in layer.holder.parameters()):
        return f"'{layer.name}' has a part in several places"
    try:
        check_hooks(layer.name, layer.holder)
    except UnsupportedError:
        return f"hooks of '{layer.name}' see them too"
    return ""
