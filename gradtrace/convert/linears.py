"""The linear layers of a model: their canonical names, where they hang, and what forbids a conversion."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from gradtrace.convert.linear_layer import LinearLayer, is_plain
from gradtrace.convert.places import Places, places_of
from gradtrace.convert.routed_attention import PROJECTIONS, RoutedAttention
from gradtrace.ledger.names import canonical

__all__ = ["linears", "nearest"]


def linears(model: nn.Module) -> dict[str, LinearLayer]:
    """Every linear layer of `model` by canonical name, in the model's order; a shared one is listed once.

    They are nn.Linear, Hugging Face's Conv1D, and the q_proj, k_proj, v_proj and out_proj of an
    nn.MultiheadAttention. Subclasses are left out: they compute something else, or are read by their parent.
    """
    found: dict[str, LinearLayer] = {}
    where = _Where.of(model)
    for name, module in model.named_modules():
        name = canonical(name)
        if type(module) is nn.MultiheadAttention:
            found |= _projections(module, name, where)
        elif type(module) is nn.Linear or _is_conv1d(module):
            places = where.places[id(module)]
            obstacle = _obstacle(module, "weight", where) or _read_by_a_parent(places, where)
            weight_name = f"{name}.weight".lstrip(".")
            transposed = not isinstance(module, nn.Linear)
            found[name] = LinearLayer(
                name, module, module, places, obstacle, weight_name, inputs_first=transposed
            )
    return found


def nearest(name: str, known: list[str]) -> str:
    """A remedy that names the closest of `known`."""
    close = get_close_matches(name, known, n=1, cutoff=0.0)
    return f"the nearest name is '{close[0]}'" if close else "the model has none"


@dataclass(frozen=True)
class _Where:
    """By id: every place of a module, and every (module, canonical name) that holds a parameter."""

    places: dict[int, Places]
    holders: dict[int, list[tuple[nn.Module, str]]]

    @classmethod
    def of(cls, model: nn.Module) -> _Where:
        holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for name, module in model.named_modules():
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    holders[id(parameter)].append((module, f"{canonical(name)}.{attribute}".lstrip(".")))
        return cls(places_of(model), holders)


def _projections(attention: nn.MultiheadAttention, name: str, where: _Where) -> dict[str, LinearLayer]:
    """The four layers of an attention; its obstacles are theirs, for it is replaced as a whole."""
    size = attention.embed_dim
    together = attention._qkv_same_embed_dim
    leaves = ["in_proj_weight"] if together else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    obstacle = _obstacle_of_attention(attention, leaves, where)
    found = {}
    for number, leaf in enumerate(PROJECTIONS[:3]):
        full = f"{name}.{leaf}".lstrip(".")
        own = "in_proj_weight" if together else f"{leaf}_weight"
        rows = (number * size, (number + 1) * size)
        found[full] = LinearLayer(
            full, attention, attention, where.places[id(attention)], obstacle, f"{name}.{own}".lstrip("."),
            leaf=own, bias_leaf="in_proj_bias", rows=rows if together else None, bias_rows=rows,
        )  # fmt: skip
    full = f"{name}.{PROJECTIONS[3]}".lstrip(".")
    found[full] = LinearLayer(
        full, attention.out_proj, attention, where.places[id(attention)], obstacle, f"{full}.weight"
    )
    return found


def _is_conv1d(module: nn.Module) -> bool:
    # Hugging Face's class, by its name and its sizes, so that nothing is imported.
    weight = module._parameters.get("weight")
    sizes = (getattr(module, "nx", None), getattr(module, "nf", None))
    return type(module).__name__ == "Conv1D" and weight is not None and tuple(weight.shape) == sizes


def _obstacle_of_attention(attention: nn.MultiheadAttention, leaves: list[str], where: _Where) -> str:
    found = [_obstacle(attention, leaf, where) for leaf in leaves]
    found.append(_obstacle(attention.out_proj, "weight", where))
    for bias in (attention.in_proj_bias, attention.out_proj.bias):
        others = [] if bias is None else where.holders[id(bias)][1:]
        found.append(f"its bias is also '{others[0][1]}': converting it would untie them" if others else "")
    if attention.bias_k is not None or attention.add_zero_attn:
        found.append("its attention adds a key of its own (add_bias_kv, add_zero_attn)")
    return next((said for said in found if said), "")


def _obstacle(module: nn.Module, leaf: str, where: _Where) -> str:
    weight = module._parameters.get(leaf)
    if weight is None:
        return "its weight is computed by a hook (pruning or weight norm): make that permanent first"
    if not is_plain(weight):
        return f"its weight is a {type(weight.data).__name__} of {weight.dtype}, not a plain float tensor"
    if not where.places[id(module)]:
        return "it is the whole model: wrap it, for instance in nn.Sequential"
    others = [place for owner, place in where.holders[id(weight)] if owner is not module]
    if others:
        return f"its weight is also '{others[0]}': converting it would untie them"
    return "its forward has been replaced" if "forward" in vars(module) else ""


def _read_by_a_parent(places: Places, where: _Where) -> str:
    """Torch's fused encoder layer reads the weights of linear1 and linear2, but for an attention of ours."""
    for parent, _ in places:
        attention = getattr(parent, "self_attn", None)
        if not isinstance(parent, nn.TransformerEncoderLayer) or isinstance(attention, RoutedAttention):
            continue
        if type(attention) is not nn.MultiheadAttention:
            return "nn.TransformerEncoderLayer reads its weight directly on the fast path"
        obstacle = next(iter(_projections(attention, "", where).values())).obstacle
        if obstacle:
            return f"it needs the attention of its nn.TransformerEncoderLayer replaced too, but {obstacle}"
    return ""
