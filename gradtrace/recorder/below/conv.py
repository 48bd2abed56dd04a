"""What `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` contribute."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from gradtrace.recorder.below.contribution import Contribution
from gradtrace.recorder.below.convolution import Convolution
from gradtrace.recorder.below.elementwise import Elementwise

__all__ = ["conv"]


def conv(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` (O, I / G, *K) and `bias` (O,), from x (S, I, *L) and d (S, O, *L').

    Without the axis S it is one sample. Any stride, padding and its mode, dilation and groups.
    """
    dimensions = len(module.stride)
    if x.ndim == dimensions + 1:
        x, d = x[None], d[None]
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * dimensions
    weight = Convolution(
        d, x, tuple(module.weight.shape), module.stride, padding, module.dilation, module.groups
    )
    return {"weight": weight, "bias": Elementwise(d.flatten(2).transpose(1, 2))}
