"""A mask held on a model that trains: what it drops is zero in the weights and in the optimizer's state.

Gradients go on reaching the dropped weights, so the mask is applied again after every optimizer step. Of a
DTensor only the local shard is touched; nothing is gathered and no rank waits for another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from gradtrace.convert.masks import masks_by_name
from gradtrace.recorder.shards import box_of, is_sharded
from gradtrace.recorder.wrappers import bare_model, bare_optimizer

__all__ = ["Masking", "local", "local_part_of"]


class Masking:
    """Which elements of a model's parameters are held at zero.

    Args:
        model: the module that trains; compiled, DDP and Fabric ones keep their names.
        mask: parameter name -> bool array of the whole parameter's shape, True = kept.

    Raises:
        MismatchError: the model has no such parameter, or one of another shape.
        UnsupportedError: what this rank holds of a sharded parameter is not told by its placements.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, NDArray[np.bool_]]) -> None:
        self._gone: dict[nn.Parameter, Tensor] = {}
        for name, (parameter, kept) in masks_by_name(bare_model(model), mask).items():
            assert isinstance(parameter, nn.Parameter)
            gone = local_part_of(name, parameter, ~kept)
            if gone.any():
                self._gone[parameter] = gone

    @torch.no_grad()
    def apply_(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Zero what is dropped, in the weights and in all state that these optimizers keep elementwise.

        Momentum, both moments of Adam, averages: every tensor of a parameter's state that has its shape.
        """
        for parameter, gone in self._gone.items():
            _zero(parameter, gone)
        for optimizer in optimizers:
            state: Mapping[Any, Any] = bare_optimizer(optimizer)[0].state
            for parameter, gone in self._gone.items():
                own = state.get(parameter)
                for value in own.values() if isinstance(own, Mapping) else ():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        _zero(value, gone)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    part: Tensor = sharded.to_local()
    return part


def local_part_of(name: str, parameter: nn.Parameter, values: NDArray[Any]) -> Tensor:
    """Of `values`, of the whole parameter's shape, what belongs to the part that this rank holds."""
    box = box_of(name, parameter)
    part = values[tuple(slice(a, a + n) for a, n in zip(box.start, box.shape, strict=True))]
    held = local(parameter)
    return torch.from_numpy(np.ascontiguousarray(part)).reshape(held.shape).to(held.device)


def _zero(tensor: Tensor, gone: Tensor) -> None:
    part = local(tensor)
    place = gone if part.device == gone.device else gone.to(part.device)
    part.masked_fill_(place, 0)
