"""The layers that a ledger tells of, without the model around them: enough to plan and to time."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gradtrace.errors import MismatchError, UnsupportedError
from gradtrace.ledger.reader import Ledger

__all__ = ["bare_layers"]


def bare_layers(ledger: Ledger, weights: Mapping[str, Tensor]) -> nn.Module:
    """A module that holds, under their own names, the `nn.Linear` layers recorded in `ledger`.

    Other floating-point weights are there as plain parameters, so that a mask of any of them has its place.
    The module cannot be called as a whole: it gives a plan the layers' names, shapes and weights.

    Raises:
        UnsupportedError: the ledger recorded no linear layer whose weights are given.
        MismatchError: the names of the weights cannot be those of a module.
    """
    root = nn.Module()
    linear = {
        record.info.module: None  # a dict, for its order
        for name, record in ledger.items()
        if record.info.module_class == "Linear" and record.info.role == "weight" and name in weights
    }
    linear.pop("", None)
    if not linear:
        raise UnsupportedError(
            f"ledger {ledger.path!r}",
            expected="at least one nn.Linear layer that has a name",
            got="none to plan for",
            remedy="pass the module with --model",
        )
    try:
        _fill(root, linear, weights)
    except (KeyError, AttributeError) as error:  # an empty name, or one that is a module and a parameter
        raise MismatchError("names of the weights", expected="those of a module", got=str(error)) from error
    return root


def _fill(root: nn.Module, linear: Mapping[str, None], weights: Mapping[str, Tensor]) -> None:
    for module in linear:
        weight, bias = weights[f"{module}.weight"], weights.get(f"{module}.bias")
        # On "meta" first: nothing is drawn at random only to be overwritten.
        layer = nn.Linear(
            weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype
        )
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        _parent(root, module).add_module(module.rpartition(".")[2], layer)
    for name, weight in weights.items():
        if name.rpartition(".")[0] not in linear and weight.is_floating_point():
            parameter = nn.Parameter(weight, requires_grad=False)
            _parent(root, name).register_parameter(name.rpartition(".")[2], parameter)


def _parent(root: nn.Module, name: str) -> nn.Module:
    parent = root
    for part in name.split(".")[:-1]:
        if part not in parent._modules:
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    return parent
