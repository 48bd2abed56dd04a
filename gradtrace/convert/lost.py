"""How far the layers of a converted model are from those of the model it was made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.linears import linears, nearest
from gradtrace.convert.listening import AfterForward, listening
from gradtrace.convert.replacement import attention_of
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import MismatchError
from gradtrace.ledger.names import canonical

__all__ = ["lost_shares"]


def lost_shares(
    original: nn.Module, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, float]:
    """Converted layer -> mean squared difference from the layer of `original` on the same inputs.

    In shares of the variance of that layer's output; infinite where that has none and there is a difference.
    The inputs are those that the layer has in `original`.

    Raises:
        MismatchError: `original` has no such layer.
    """
    routed = {canonical(name): one for name, one in model.named_modules() if isinstance(one, RoutedLinear)}
    there = {canonical(name): one for name, one in original.named_modules()}
    layers = linears(original)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in routed}

    def comparing(name: str) -> AfterForward:
        def compare(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], y: Tensor) -> None:
            expected = y.detach().flatten(0, -2).double()
            got = routed[name].forward(*given, **named).flatten(0, -2).double()
            sums[name] += torch.stack([(got - expected).square().sum(), _spread(expected)]).cpu()

        return compare

    hooks: list[tuple[nn.Module, AfterForward]] = []
    attentions: dict[nn.MultiheadAttention, dict[str, AfterForward]] = defaultdict(dict)
    for name in routed:
        holder = layers[name].holder if name in layers else None
        if isinstance(holder, nn.MultiheadAttention):
            attentions[holder][name] = comparing(name)
        elif name in there:
            hooks.append((there[name], comparing(name)))
        else:
            raise MismatchError(f"the original has no layer '{name}'", remedy=nearest(name, list(there)))
    hooks += [(attention, _inside(attention, layers, inner)) for attention, inner in attentions.items()]
    if hooks:
        with listening(hooks):
            original(*args, **kwargs)
    return {name: _share(*pair.tolist()) for name, pair in sums.items()}


def _inside(
    attention: nn.MultiheadAttention,
    layers: Mapping[str, LinearLayer],
    hooks: Mapping[str, AfterForward],
) -> AfterForward:
    """Runs the attention again with projections that are modules: its own call no hook of theirs."""
    apart = attention_of(attention, layers, {}).eval()
    parts = [(apart.get_submodule(name.rpartition(".")[2]), hook) for name, hook in hooks.items()]

    def run(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], __: object) -> None:
        with listening(parts):
            apart(*given, **named)

    return run


def _spread(outputs: Tensor) -> Tensor:
    return (outputs - outputs.mean(0)).square().sum()


def _share(error: float, size: float) -> float:
    return error / size if size else (0.0 if not error else float("inf"))
