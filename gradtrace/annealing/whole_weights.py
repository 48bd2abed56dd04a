"""The weights of a model as whole arrays, whatever part of them a rank holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradtrace.evidence.weights import as_array
from gradtrace.ledger.names import canonical
from gradtrace.recorder.shards import is_sharded
from gradtrace.recorder.wrappers import bare_model

__all__ = ["whole_weights"]


@torch.no_grad()
def whole_weights(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Canonical name -> array of every floating-point parameter of at least two dimensions.

    Shards are gathered, parameter by parameter: all ranks of a sharded model must come here.
    """
    found = {}
    for name, parameter in bare_model(model).named_parameters():
        if parameter.ndim < 2 or not parameter.is_floating_point():
            continue
        sharded: Any = parameter
        value = sharded.full_tensor() if is_sharded(parameter) else parameter
        found[canonical(name)] = np.array(as_array(value, f"parameter {name!r}"))  # not the live memory
    return found
