"""What `nn.Linear` and the `Conv1D` of Hugging Face contribute."""

from __future__ import annotations

from typing import Any

import torch

from gradtrace.recorder.below.contribution import Contribution
from gradtrace.recorder.below.elementwise import Elementwise
from gradtrace.recorder.below.product import Product

__all__ = ["by_position", "conv1d_of_gpt", "linear"]


def linear(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` (O, I) and `bias` (O,), from x (*, I) and d (*, O).

    The first axis counts samples, further ones but the last positions; a single vector is one sample.
    """
    return _product(x, d, inputs_first=False)


def conv1d_of_gpt(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` (I, O) and `bias` (O,), from x (*, I) and d (*, O)."""
    return _product(x, d, inputs_first=True)


def by_position(tensor: torch.Tensor, own: int) -> torch.Tensor:
    """Return (samples, *positions, *own) as (samples, positions, *own); `own` axes belong to a position."""
    split = tensor.ndim - own
    kept = tensor.shape[split:]
    if split == 0:
        return tensor.reshape(1, 1, *kept)
    # Not -1: an empty batch leaves nothing to infer it from.
    return tensor.reshape(tensor.shape[0], torch.Size(tensor.shape[1:split]).numel(), *kept)


def _product(x: torch.Tensor, d: torch.Tensor, *, inputs_first: bool) -> dict[str, Contribution]:
    d = by_position(d, 1)
    return {"weight": Product(d, by_position(x, 1), inputs_first), "bias": Elementwise(d)}
