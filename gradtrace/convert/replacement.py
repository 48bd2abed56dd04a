"""What takes the place of what in a model: found for all layers first, then put in, and back out again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.places import Places, places_of, put
from gradtrace.convert.routed_attention import PROJECTIONS, RoutedAttention
from gradtrace.convert.routed_linear import RoutedLinear

__all__ = ["Replacement", "adopt", "affected", "attention_of", "nested_around", "replacements"]


@dataclass(frozen=True, eq=False)
class Replacement:
    """`new` instead of `old`, at every one of `places`.

    The nn.TransformerEncoders `around` it use nested tensors, as torch's fused layers do, if `nested`.
    """

    old: nn.Module
    new: nn.Module
    places: Places
    around: tuple[nn.TransformerEncoder, ...] = ()
    nested: bool = False

    def apply_(self) -> None:
        """Put the new module in."""
        put(self.new, self.places)
        for encoder in self.around:
            encoder.use_nested_tensor = self.nested

    def undo_(self) -> None:
        """Put the old module back."""
        put(self.old, self.places)
        for encoder in self.around:
            encoder.use_nested_tensor = not self.nested


def adopt(routed: RoutedLinear, layer: LinearLayer) -> RoutedLinear:
    """Let `routed` have what the layer has beside its weight: its bias, its mode, and whether it trains."""
    linear = layer.linear()
    routed.weight.requires_grad_(linear.weight.requires_grad)
    routed.bias = linear.bias
    if linear.bias is not None and layer.bias_rows is not None:
        routed.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
    if layer.inputs_first:
        routed.dense_class = type(layer.module)
    return routed.train(linear.training)


def affected(layers: Mapping[str, LinearLayer], names: Iterable[str]) -> list[LinearLayer]:
    """Those layers, and the others of every attention that goes with them."""
    chosen = [layers[name] for name in names]
    holders = {id(holder) for layer in chosen for holder in (layer.holder, *_attentions(layer))}
    return [layer for layer in layers.values() if id(layer.holder) in holders]


def replacements(
    model: nn.Module, layers: Mapping[str, LinearLayer], built: Mapping[str, RoutedLinear]
) -> list[Replacement]:
    """What has to be replaced so that `model` runs `built`, layer name -> module; nothing is changed yet.

    An attention with one converted layer gets all four as modules, the others as nn.Linear. So does the
    attention beside a converted linear1 or linear2 of nn.TransformerEncoderLayer: its fused kernel would read
    their weights otherwise.
    """
    found = []
    attentions: dict[int, nn.MultiheadAttention] = {}
    for name, routed in built.items():
        attentions |= {id(one): one for one in _attentions(layers[name])}
        if not isinstance(layers[name].holder, nn.MultiheadAttention):
            found.append(Replacement(layers[name].holder, routed, layers[name].places))
    for attention in attentions.values():
        routed_attention = attention_of(attention, layers, built)
        around = tuple(one for one in nested_around(model, attention) if one.use_nested_tensor)
        routed_attention.nested = bool(around)
        found.append(Replacement(attention, routed_attention, places_of(model)[id(attention)], around))
    return found


def attention_of(
    attention: nn.MultiheadAttention, layers: Mapping[str, LinearLayer], built: Mapping[str, RoutedLinear]
) -> RoutedAttention:
    """One that runs `built` where it is among its layers, and copies of the others."""
    own = [layer for layer in layers.values() if layer.holder is attention]
    children = {
        leaf: built.get(layer.name) or _copied(layer) for leaf, layer in zip(PROJECTIONS, own, strict=True)
    }
    return RoutedAttention(attention, children)


def nested_around(model: nn.Module, attention: nn.Module) -> tuple[nn.TransformerEncoder, ...]:
    """The nn.TransformerEncoders of `model` that hold `attention` and may use nested tensors."""
    return tuple(
        encoder
        for encoder in model.modules()
        if isinstance(encoder, nn.TransformerEncoder) and hasattr(encoder, "use_nested_tensor")
        if any(module is attention for module in encoder.modules())
    )


def _attentions(layer: LinearLayer) -> list[nn.MultiheadAttention]:
    """Those that are replaced with the layer."""
    beside = [
        parent.self_attn for parent, _ in layer.places if isinstance(parent, nn.TransformerEncoderLayer)
    ]
    return [one for one in (layer.holder, *beside) if isinstance(one, nn.MultiheadAttention)]


def _copied(layer: LinearLayer) -> nn.Linear:
    """The layer as a plain nn.Linear with parameters of its own; out_proj keeps its own."""
    outputs, inputs = layer.shape
    view = layer.linear()
    made = nn.Linear(inputs, outputs, bias=view.bias is not None, device="meta")
    if layer.module is not layer.holder:
        made.weight, made.bias = view.weight, view.bias
        return made.train(view.training)
    made.weight = nn.Parameter(view.weight.detach().clone(), requires_grad=view.weight.requires_grad)
    if view.bias is not None:
        made.bias = nn.Parameter(view.bias.detach().clone(), requires_grad=view.bias.requires_grad)
    return made.train(view.training)
