"""The layers that a plan or a saved model speaks of, found in a model or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

import torch
from torch import nn

from gradtrace.convert.linear_layer import LinearLayer
from gradtrace.convert.linears import linears, nearest
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import InvalidValueError, MismatchError, StateError, UnsupportedError
from gradtrace.ledger.names import canonical

__all__ = ["check_hooks", "check_replaceable", "check_weights", "match_layers"]

_MODULE_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def match_layers(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, LinearLayer]:
    """The model's linear layers by name, among them every one of `shapes`: name -> (outputs, inputs).

    Raises:
        MismatchError: `what` (the plan, the saved model) names a layer that the model lacks or has in
        another shape. UnsupportedError: it names a module that is no linear layer. StateError: it names a
        layer that has been converted already.
    """
    layers = linears(model)
    for name, shape in shapes.items():
        if name not in layers:
            _refuse_missing(model, name, layers, what)
        if layers[name].shape != shape:
            raise MismatchError(
                f"{what} is for another model: layer '{name}'",
                expected=f"(outputs, inputs) {shape}",
                got=str(layers[name].shape),
                remedy="use the model that it was made for",
            )
    return layers


def check_replaceable(layers: Iterable[LinearLayer]) -> None:
    """Refuse, by name, layers that cannot be replaced, or whose hooks would be lost.

    Raises:
        UnsupportedError: naming the first such layer.
    """
    for layer in layers:
        if layer.obstacle:
            raise UnsupportedError(
                f"layer '{layer.name}' cannot be converted: {layer.obstacle}",
                remedy="leave it out of the plan",
            )
        check_hooks(layer.name, layer.holder)


def check_hooks(name: str, module: nn.Module) -> None:
    """Refuse, with UnsupportedError, to replace a module whose hooks, or whose parameters', would be lost."""
    hooks = [kind for kind in _MODULE_HOOKS for part in module.modules() if getattr(part, kind)]
    for parameter in module.parameters():
        hooks += [f"parameter{kind}" for kind in _PARAMETER_HOOKS if getattr(parameter, kind, None)]
    if hooks:
        raise UnsupportedError(
            f"layer '{name}' carries {hooks[0].strip('_').replace('_', ' ')}",
            remedy="remove them, and register them again on the new layer",
        )


def check_weights(layers: Iterable[LinearLayer]) -> None:
    """Refuse, by name, weights without values, or with values that are none.

    Raises:
        UnsupportedError: a weight on the meta device. InvalidValueError: NaN or infinity.
    """
    for layer in layers:
        bias = layer.linear().bias
        for what, values in (("weight", layer.weight), ("bias", bias)):
            if values is None:
                continue
            if values.is_meta:
                raise UnsupportedError(
                    f"layer '{layer.name}' is on the meta device", remedy="load its weights first"
                )
            # Both ends are NaN where anything is, and nothing of the weight's size is made to see it.
            if values.numel() and not torch.stack(values.detach().aminmax()).isfinite().all():
                wrong = int((~torch.isfinite(values)).sum())
                raise InvalidValueError(
                    f"{what} of layer '{layer.name}'",
                    expected="finite numbers",
                    got=f"{wrong} of NaN or infinity",
                    remedy="convert weights from before training broke down",
                )


def _refuse_missing(model: nn.Module, name: str, layers: Mapping[str, LinearLayer], what: str) -> NoReturn:
    there = {canonical(given): module for given, module in model.named_modules()}
    if isinstance(there.get(name), RoutedLinear):
        raise StateError(
            f"layer '{name}' has been converted already", remedy="use a freshly built dense model"
        )
    if name in there:
        raise UnsupportedError(
            f"{what} is for another model: '{name}' is a {type(there[name]).__name__}",
            expected="nn.Linear, Conv1D, or a projection of nn.MultiheadAttention",
            remedy="leave it out of the plan, or use the model that this was made for",
        )
    wrapped = f"module.{name}" in layers
    raise MismatchError(
        f"{what} is for another model: there is no linear layer '{name}'",
        remedy="pass the module inside the wrapper (model.module)"
        if wrapped
        else nearest(name, list(layers)),
    )
