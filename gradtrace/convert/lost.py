"""How far the layers of a converted model are from those of the model it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradtrace.convert.linears import nearest
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
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in routed}
    handles = []
    for name, layer in routed.items():
        if name not in there:
            raise MismatchError(f"the original has no layer '{name}'", remedy=nearest(name, list(there)))

        def compare(
            _: nn.Module,
            given: tuple[Any, ...],
            named: dict[str, Any],
            y: Tensor,
            *,
            name: str = name,
            layer: RoutedLinear = layer,
        ) -> None:
            expected = y.detach().flatten(0, -2).double()
            got = layer.forward(*given, **named).flatten(0, -2).double()
            sums[name] += torch.stack([(got - expected).square().sum(), _spread(expected)]).cpu()

        handles.append(there[name].register_forward_hook(compare, with_kwargs=True))
    try:
        if handles:
            with torch.compiler.set_stance("force_eager"):  # compiled code would trace the hooks
                original(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _share(*pair.tolist()) for name, pair in sums.items()}


def _spread(outputs: Tensor) -> Tensor:
    return (outputs - outputs.mean(0)).square().sum()


def _share(error: float, size: float) -> float:
    return error / size if size else (0.0 if not error else float("inf"))
