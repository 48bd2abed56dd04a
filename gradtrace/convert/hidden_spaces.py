"""All hidden units of a model whose order may change, and why the order of others may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from gradtrace.convert.hidden_space import HiddenSpace
from gradtrace.convert.known_spaces import known_spaces
from gradtrace.convert.known_streams import known_streams
from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.matching import check_hooks
from gradtrace.convert.places import held_times
from gradtrace.convert.traced_spaces import traced_spaces
from gradtrace.errors import UnsupportedError
from gradtrace.ledger.names import canonical

__all__ = ["hidden_spaces"]


def hidden_spaces(model: nn.Module, layers: Mapping[str, LinearLayer]) -> list[HiddenSpace]:
    """Those of known modules and residual streams, then those found by tracing beside them."""
    known = [*known_spaces(model, layers), *known_streams(model, layers)]
    taken = {(member.layer, member.outputs) for space in known for member in space.members}
    traced = [
        space
        for space in traced_spaces(model, layers)
        if not any((member.layer, member.outputs) in taken for member in space.members)
    ]
    held = held_times(model)
    ids = {canonical(name): id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    found = []
    for space in (*known, *traced):
        members = [layers[member.layer] for member in space.members]
        vectors = {ids[name]: name for name in space.vectors}
        # How often the space itself holds them: a layer may be tied to an embedding.
        own = Counter([*vectors, *(key for key in map(_weight, members) if key in vectors)])
        said = [space.why_not, *(_obstacle(one, held, own) for one in members)]
        said += [
            f"'{name}' has a part in several places" for one, name in vectors.items() if held[one] > own[one]
        ]
        found.append(replace(space, why_not=next((one for one in said if one), "")))
    return found


def _weight(layer: LinearLayer) -> int:
    return id(layer.parameter)


def _obstacle(layer: LinearLayer, held: Mapping[int, int], own: Counter[int]) -> str:
    # Tied to an embedding of the same units: both read one weight, whose columns go with them.
    tied = own[_weight(layer)] > 1
    if layer.obstacle and not tied:
        return f"'{layer.name}' has to stay as it is: {layer.obstacle}"
    if len(layer.places) > 1 or any(
        held[id(one)] > (own[id(one)] if tied and one is layer.parameter else 1)
        for one in layer.holder.parameters()
    ):
        return f"'{layer.name}' has a part in several places"
    try:
        check_hooks(layer.name, layer.holder)
    except UnsupportedError:
        return f"hooks of '{layer.name}' see them too"
    return ""
