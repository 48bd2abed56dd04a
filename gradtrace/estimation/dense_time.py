"""How long a call of the dense model takes, and how much of that its linear layers do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradtrace.convert.evaluation import arguments, in_eval
from gradtrace.convert.linears import linears
from gradtrace.convert.timing import quartiles

__all__ = ["measured"]

_BUDGET = 2.0


def measured(model: nn.Module, example: object, tokens: int) -> tuple[float, float]:
    """Seconds of a call on `example`, and of its linear layers alone on `tokens` rows of noise each.

    Both are called in turns, so that whatever else the machine does falls on both; the second is at most the
    first.
    """
    positional, keywords = arguments(example)
    products = [_product(layer.linear(), tokens) for layer in linears(model).values() if layer.timed]

    def alone() -> None:
        for product in products:
            product()

    device = next(model.parameters()).device
    with torch.inference_mode(), in_eval(model):
        whole, linear = quartiles([lambda: model(*positional, **keywords), alone], device, _BUDGET)
    return whole, min(whole, linear)


def _product(linear: nn.Linear, tokens: int) -> Callable[[], Tensor]:
    weight = linear.weight
    x = torch.randn(tokens, linear.in_features, device=weight.device, dtype=weight.dtype)
    return lambda: functional.linear(x, weight, linear.bias)
