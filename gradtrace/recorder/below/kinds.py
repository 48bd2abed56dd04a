"""Which modules offer evidence below the step, and by which formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradtrace.recorder.below.contribution import Contribution
from gradtrace.recorder.below.conv import conv
from gradtrace.recorder.below.embedding import embedding
from gradtrace.recorder.below.linear import conv1d_of_gpt, linear
from gradtrace.recorder.below.norm import batch_norm, group_norm, layer_norm, rms_norm

__all__ = ["Kind", "kind_of", "ties_samples"]

Kind: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor], dict[str, Contribution]]

_KINDS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Kind], ...] = (
    (nn.Linear, linear),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv),
    (nn.Embedding, embedding),
    (nn.LayerNorm, layer_norm),
    (nn.RMSNorm, rms_norm),
    (nn.GroupNorm, group_norm),
    (_BatchNorm, batch_norm),
)


def kind_of(module: nn.Module) -> Kind | None:
    """The formula for a module: from (module, input, gradient in its output) to contributions by parameter.

    None for a module without one: its own parameters have evidence of steps only. The classes of Hugging Face
    are told by name, so that nothing is imported; that a formula fits is checked against the first gradient.
    """
    for classes, kind in _KINDS:
        if isinstance(module, classes):
            return kind
    name = type(module).__name__
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return None
    if name == "Conv1D" and weight.ndim == 2:
        return conv1d_of_gpt
    return rms_norm if name.endswith("RMSNorm") and weight.ndim == 1 else None


def ties_samples(module: nn.Module) -> bool:
    """Whether the module mixes the samples of a batch, so that a sample has no gradient of its own."""
    return isinstance(module, _BatchNorm)
