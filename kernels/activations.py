"""What follows a linear layer, at once, while its results are at hand: activation, and product with a gate.

    y = a(z) * times,    a one of

    none       z                     relu   max(z, 0)
    gelu       z P(N(0, 1) <= z)     silu   z / (1 + exp(-z))
    gelu_tanh  z / (1 + exp(-2 u)),  u = sqrt(2 / pi) (z + 0.044715 z^3): torch's approximate="tanh"

With `times`, the results of another layer, this is a gated layer (SwiGLU and its kin, arXiv 2002.05202).
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor
from torch.nn import functional

from gradtrace.errors import UnknownNameError
from gradtrace.kernels.optional_triton import jit, tl

__all__ = ["ACTIVATIONS", "activate", "activated", "check_activation", "derivative"]

ACTIVATIONS = ("none", "relu", "gelu", "silu", "gelu_tanh")
"""Their place is their number in the C file."""

_TANH = sqrt(2 / pi)


def check_activation(name: str) -> None:
    """Raises UnknownNameError for what is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", expected=f"one of {', '.join(ACTIVATIONS)}", got=repr(name))


def activate(z: Tensor, name: str) -> Tensor:
    """a(z), in plain torch."""
    if name == "relu":
        return functional.relu(z)
    if name == "silu":
        return functional.silu(z)
    if name == "none":
        return z
    return functional.gelu(z, approximate="none" if name == "gelu" else "tanh")


def derivative(z: Tensor, name: str) -> Tensor:
    """a'(z), in plain torch, which can be differentiated itself; for relu 0 at 0, as torch has it."""
    if name == "none":
        return torch.ones_like(z)
    if name == "relu":
        positive: Tensor = z > 0
        return positive.to(z.dtype)
    if name == "silu":
        part = torch.sigmoid(z)
        return part * (1 + z * (1 - part))
    if name == "gelu":
        below: Tensor = torch.special.ndtr(z)
        return below + z * torch.exp(-0.5 * z * z) / sqrt(2 * pi)
    part = torch.sigmoid(2 * _TANH * (z + 0.044715 * z**3))
    return part + z * part * (1 - part) * 2 * _TANH * (1 + 3 * 0.044715 * z * z)


@jit
def activated(z: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """a(z) of a float32 tile."""
    if ACTIVATION == "relu":
        z = tl.where(z > 0, z, tl.where(z != z, z, 0.0))  # NaN stays
    if ACTIVATION == "silu":
        z = z / (1.0 + tl.exp(-z))
    if ACTIVATION == "gelu":
        z = z * 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":
        z = z / (1.0 + tl.exp(-1.5957691216057308 * (z + 0.044715 * z * z * z)))
    return z
