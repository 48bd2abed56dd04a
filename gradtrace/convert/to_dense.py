"""The way back: a converted model as the masked dense model that it equals."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from gradtrace.convert.dense_modules import dense_attention, dense_layer
from gradtrace.convert.matching import check_hooks
from gradtrace.convert.model import check_model
from gradtrace.convert.places import places_of
from gradtrace.convert.replacement import Replacement, nested_around
from gradtrace.convert.routed_attention import RoutedAttention
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import UnsupportedError
from gradtrace.ledger.names import canonical

__all__ = ["to_dense_"]

Model = TypeVar("Model", bound=nn.Module)


def to_dense_(model: Model) -> Model:
    """Undo `convert_` in place, but for the masks: every layer is again of the class that it was; returned.

    nn.Linear, Conv1D and nn.MultiheadAttention are back with their names and shapes, zero where the
    sub-operators have no weight, with the values that the others have by now. On an error the model is as it
    was. Make the optimizer afterwards: weights are new parameters.

    Raises:
        UnsupportedError: a converted layer that carries hooks, or that is the whole model.
        InvalidValueError: no nn.Module.
    """
    check_model(model)
    places = places_of(model)
    found: list[Replacement] = []
    inside: set[int] = set()
    for given, module in model.named_modules():
        if id(module) in inside or not isinstance(module, RoutedLinear | RoutedAttention):
            continue
        if module is model:
            raise UnsupportedError(
                f"the whole model is one {type(module).__name__}", remedy="wrap it, e.g. in nn.Sequential"
            )
        check_hooks(canonical(given), module)
        if isinstance(module, RoutedAttention):
            inside |= {id(part) for part in module.modules()}
            around = nested_around(model, module) if module.nested else ()
            found.append(
                Replacement(module, dense_attention(module), places[id(module)], around, nested=True)
            )
        else:
            found.append(Replacement(module, dense_layer(module), places[id(module)]))
    for replacement in found:
        replacement.apply_()
    return model
