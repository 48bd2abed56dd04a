"""What this rank holds of a parameter: all of a plain tensor, and of a DTensor its local shard."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from gradtrace.errors import UnsupportedError
from gradtrace.recorder.shares import Box

__all__ = ["box_of", "is_sharded", "local_part"]

_PLACEMENTS = ("Replicate", "Shard", "_StridedShard")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor; told by its class's name, so that torch.distributed need not be there."""
    return _is_dtensor(type(tensor))


@cache  # asked of every parameter at every step
def _is_dtensor(kind: type) -> bool:
    return any(base.__name__ == "DTensor" for base in kind.__mro__)


def box_of(name: str, parameter: nn.Parameter) -> Box:
    """The box of `parameter` that this rank holds; where it holds nothing, an empty one.

    Raises:
        UnsupportedError: what it holds is not told by the placements; the parameter is named.
    """
    whole = tuple(parameter.shape)
    if not is_sharded(parameter):
        return Box((0,) * len(whole), whole)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = parameter
    kinds = [type(placement).__name__ for placement in sharded.placements]
    strange = [kind for kind in kinds if kind not in _PLACEMENTS]
    if strange:
        raise _refused(name, f"is placed as {', '.join(strange)}")
    shape, start = compute_local_shape_and_global_offset(
        torch.Size(whole), sharded.device_mesh, sharded.placements
    )
    held = tuple(sharded.to_local().shape)
    if tuple(shape) != held:
        raise _refused(name, f"has a local shard {held} where its placements say {tuple(shape)}")
    if 0 in held:
        return Box((0,) * len(whole), tuple(0 for _ in whole))
    return Box(tuple(start), held)


def local_part(name: str, parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of `tensor`, the parameter itself or its gradient; nothing is gathered.

    Raises:
        UnsupportedError: a gradient is placed otherwise than its parameter, such as Partial, where each rank
            holds a summand instead of a part; the parameter is named.
    """
    if not is_sharded(tensor) and not is_sharded(parameter):
        return tensor
    given, wanted = getattr(tensor, "placements", None), getattr(parameter, "placements", None)
    if given != wanted:
        raise _refused(name, f"has a gradient placed as {given} and is itself placed as {wanted}")
    sharded: Any = tensor
    local: Any = sharded.to_local()
    # A gradient may still be on its way from the other ranks.
    part: torch.Tensor = local.wait() if type(local).__name__ == "AsyncCollectiveTensor" else local
    return part


def _refused(name: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"parameter {name!r} {reason}",
        expected="a parameter of which each rank holds one box, and a gradient placed like it",
        remedy=f"exclude={name!r}",
    )
