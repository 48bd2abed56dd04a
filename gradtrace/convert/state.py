"""A model's state_dict under canonical names: what is written once, and what a file must hold to fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gradtrace.convert.linears import nearest
from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.errors import MismatchError, UnsupportedError
from gradtrace.ledger.names import canonical

__all__ = ["check_state", "distinct_tensors", "named_state"]

_NOT_IN_SAFETENSORS = (torch.complex32, torch.complex128)


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of `model` by canonical name.

    Raises:
        UnsupportedError: an entry that is no plain tensor with values, by name.
    """
    state = {}
    for name, value in model.state_dict().items():
        plain = isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter)
        if not plain or value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise UnsupportedError(
                f"'{name}' in the model's state is no plain tensor with values",
                got=type(value).__name__,
                remedy="materialise it before saving",
            )
        if value.dtype in _NOT_IN_SAFETENSORS:
            raise UnsupportedError(
                f"'{name}' in the model's state is {value.dtype}, which safetensors cannot hold",
                remedy="keep it as two real tensors",
            )
        state[canonical(name)] = value
    return state


def distinct_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every distinct tensor once, contiguous on the CPU; and tied name -> the name that it is kept under."""
    first: dict[object, str] = {}
    tensors, aliases = {}, {}
    for name, value in state.items():
        key = _identity(value)
        if value.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        copy = value.detach().cpu().contiguous()
        # A view of something larger: the file format refuses tensors that share memory.
        shares = copy.untyped_storage().nbytes() != copy.numel() * copy.element_size()
        tensors[name] = copy.clone() if shares else copy
    return tensors, aliases


def check_state(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The model's own names of everything in `state`, which must fit it exactly.

    Raises:
        MismatchError: a name, shape, dtype, index or tie differs.
        UnsupportedError: the model is on the meta device, where nothing can be loaded.
    """
    own = model.state_dict()
    names = {canonical(name) for name in own}
    for missing, where in ((names - set(state), "file"), (set(state) - names, "model")):
        for name in sorted(missing)[:1]:
            known = list(state) if where == "file" else sorted(names)
            raise MismatchError(
                f"the saved model is for another model: the {where} has no '{name}'",
                remedy=nearest(name, known),
            )
    tied: dict[object, str] = {}
    for given, value in own.items():
        name = canonical(given)
        saved = state[name]
        if saved.shape != value.shape or saved.dtype != value.dtype:
            raise MismatchError(
                f"the saved model is for another model: '{name}'",
                expected=f"{saved.dtype} of shape {tuple(saved.shape)}",
                got=f"{value.dtype} of shape {tuple(value.shape)}",
                remedy=f"call model.to({saved.dtype}) first" if saved.shape == value.shape else "",
            )
        if value.is_meta:
            raise UnsupportedError(
                f"'{name}' of the model is on the meta device, where nothing can be loaded",
                remedy="call model.to_empty(device=...) first",
            )
        first = tied.setdefault(_identity(value), name) if value.numel() else name
        if first != name and not torch.equal(state[first], saved):
            raise MismatchError(f"the model ties '{first}' and '{name}', which differ in the file")
    for given, module in model.named_modules():
        for what in ("inputs", "outputs") if isinstance(module, RoutedLinear) else ():
            if not torch.equal(state[f"{canonical(given)}.{what}"], module.get_buffer(what).cpu()):
                raise MismatchError(f"gradtrace.json and model.safetensors differ in the {what} of '{given}'")
    return list(own)


def _identity(value: Tensor) -> object:
    return value.device, value.data_ptr(), value.shape, value.stride(), value.dtype
