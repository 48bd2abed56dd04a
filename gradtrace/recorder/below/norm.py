"""What scales and shifts of norms contribute: c_n = d_n * x^_n and c_n = d_n, x^ the normalised input."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from gradtrace.recorder.below.contribution import Contribution, working
from gradtrace.recorder.below.elementwise import Elementwise
from gradtrace.recorder.below.linear import by_position

__all__ = ["batch_norm", "group_norm", "layer_norm", "rms_norm"]


def layer_norm(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` and `bias` (*F) of `nn.LayerNorm`, from x and d (S, *, *F)."""
    own = len(module.normalized_shape)
    normal = functional.layer_norm(working(x), module.normalized_shape, eps=module.eps)
    return _scale_and_shift(by_position(d, own), by_position(normal, own))


def rms_norm(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` (*F) of `nn.RMSNorm` and Hugging Face's RMSNorms, from x and d (S, *, *F).

    x^ = x / sqrt(mean(x^2) + eps), in float32. A module that scales by 1 + weight has the same contributions.
    """
    shape = tuple(module.weight.shape)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    normal = functional.rms_norm(working(x), shape, eps=eps)
    return _scale_and_shift(by_position(d, len(shape)), by_position(normal, len(shape)))


def group_norm(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` and `bias` (C,) of `nn.GroupNorm`, from x and d (S, C, *)."""
    normal = functional.group_norm(working(x), module.num_groups, eps=module.eps)
    return _scale_and_shift(_channels_last(d), _channels_last(normal))


def batch_norm(module: Any, x: torch.Tensor, d: torch.Tensor) -> dict[str, Contribution]:
    """Contributions to `weight` and `bias` (C,) of a batch norm, from x and d (S, C, *).

    Of positions only: x^ depends on the whole batch, so that there is no gradient of one sample.
    """
    if module.training or module.running_mean is None:
        normal = functional.batch_norm(working(x), None, None, training=True, eps=module.eps)
    else:
        shape = (-1, *(1,) * (x.ndim - 2))
        mean, variance = module.running_mean.reshape(shape), module.running_var.reshape(shape)
        normal = (working(x) - mean) / (variance + module.eps).sqrt()
    return _scale_and_shift(_channels_last(d), _channels_last(normal))


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Return (S, C, *) as (S, P, C)."""
    return tensor.reshape(*tensor.shape[:2], torch.Size(tensor.shape[2:]).numel()).transpose(1, 2)


def _scale_and_shift(d: torch.Tensor, normal: torch.Tensor) -> dict[str, Contribution]:
    return {"weight": Elementwise(d, normal), "bias": Elementwise(d)}
