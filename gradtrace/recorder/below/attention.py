"""The projections inside `nn.MultiheadAttention`, which a function uses and no module's hook sees.

While such a module runs, torch.nn.functional.multi_head_attention_forward is replaced, for this call alone
and by a TorchFunctionMode, by itself with another `linear`: one that notes its input and its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from gradtrace.ledger.names import canonical
from gradtrace.recorder.below.contribution import Contribution
from gradtrace.recorder.below.elementwise import Elementwise
from gradtrace.recorder.below.kinds import Kind
from gradtrace.recorder.below.owners import Owner
from gradtrace.recorder.below.product import Product
from gradtrace.recorder.below.row_part import RowPart
from gradtrace.recorder.parameters import Candidate
from gradtrace.recorder.wrappers import bare_model

__all__ = ["attentions", "watch_projections"]

_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Where each of these finds its part of the joint bias, in thirds.
_THIRD = {"in_proj_weight": 0, "q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2}


def attentions(model: nn.Module, candidates: Sequence[Candidate]) -> list[Owner]:
    """Every `nn.MultiheadAttention` with the parameters of its projections, out_proj's among them."""
    index = {id(one.parameter): number for number, one in enumerate(candidates)}
    found = []
    for name, module in bare_model(model).named_modules():
        if isinstance(module, nn.MultiheadAttention):
            names = (*_WEIGHTS, "in_proj_bias", "out_proj.weight", "out_proj.bias")
            own = {leaf: one for leaf, one in module.named_parameters() if leaf in names}
            leaves = {leaf: index[id(one)] for leaf, one in own.items() if id(one) in index}
            if leaves:
                found.append(Owner(module, canonical(name), _no_call, leaves))
    return found


def watch_projections(
    owner: Owner, note: Callable[[Owner, torch.Tensor, torch.Tensor], object]
) -> list[RemovableHandle]:
    """Call `note` with (projection, input, output) for each projection of each call of an attention."""
    open_modes: list[_Spy] = []

    def enter(module: nn.Module, args: Any) -> None:
        open_modes.append(_Spy(owner, note))
        open_modes[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if open_modes:
            open_modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    return [
        owner.module.register_forward_pre_hook(enter),
        # Also where the call fails: the mode must not stay.
        owner.module.register_forward_hook(leave, prepend=True, always_call=True),
    ]


class _Spy(TorchFunctionMode):
    def __init__(self, owner: Owner, note: Callable[[Owner, torch.Tensor, torch.Tensor], object]) -> None:
        super().__init__()
        self._owner, self._note = owner, note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.multi_head_attention_forward:
            samples = args[0].shape[1] if args[0].ndim == 3 else 1
            func = _with_linear(partial(self._linear, samples))
        return func(*args, **(kwargs or {}))

    def _linear(
        self, samples: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        out = functional.linear(x, weight, bias)
        projection = _projection(self._owner, weight, samples)
        if projection is not None:
            self._note(projection, x, out)
        return out


def _with_linear(linear: Callable[..., torch.Tensor]) -> Any:
    """multi_head_attention_forward as it is, but for what it and its own functions call `linear`."""
    names = vars(functional) | {"linear": linear}
    for inner in ("_in_projection_packed", "_in_projection"):
        names[inner] = _rebound(names[inner], names)
    return _rebound(functional.multi_head_attention_forward, names)


def _rebound(function: Any, names: dict[str, Any]) -> Any:
    made = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _projection(owner: Owner, weight: torch.Tensor, samples: int) -> Owner | None:
    """The projection that this weight, or part of one, belongs to."""
    module: Any = owner.module
    base = weight if weight._base is None else weight._base
    if base is module.out_proj.weight:
        leaves = {
            leaf.removeprefix("out_proj."): number
            for leaf, number in owner.leaves.items()
            if leaf.startswith("out_proj.")
        }
        return Owner(module, f"{owner.name}.out_proj".lstrip("."), partial(_whole, samples), leaves)
    for leaf in _WEIGHTS:
        if base is getattr(module, leaf):
            first = (weight.storage_offset() - base.storage_offset()) // weight.stride(0)
            kind: Kind = partial(_rows, samples, leaf, first, weight.shape[0])
            leaves = {name: owner.leaves[name] for name in (leaf, "in_proj_bias") if name in owner.leaves}
            return Owner(module, owner.name, kind, leaves)
    return None


def _whole(samples: int, module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    x, d = _by_sample(x, samples), _by_sample(d, samples)
    return {"weight": Product(d, x), "bias": Elementwise(d)}


def _rows(
    samples: int, leaf: str, first: int, rows: int, module: Any, x: torch.Tensor, d: torch.Tensor
) -> dict[str, Contribution]:
    x, d = _by_sample(x, samples), _by_sample(d, samples)
    shift = first + _THIRD[leaf] * module.embed_dim
    return {
        leaf: RowPart(Product(d, x), first, first + rows),
        "in_proj_bias": RowPart(Elementwise(d), shift, shift + rows),
    }


def _by_sample(tensor: torch.Tensor, samples: int) -> torch.Tensor:
    """Return (L * S, F) or (L, S, F) as (S, L, F)."""
    return tensor.reshape(-1, samples, tensor.shape[-1]).transpose(0, 1)


def _no_call(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    raise NotImplementedError("an attention is watched by its projections")
