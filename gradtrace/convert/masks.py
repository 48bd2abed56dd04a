"""A mask's entries beside the parameters they speak of, checked name by name and shape by shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.convert.linears import nearest
from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.ledger.names import canonical

__all__ = ["masks_by_name"]


def masks_by_name(
    model: nn.Module, mask: Mapping[str, NDArray[np.bool_]]
) -> dict[str, tuple[Tensor, NDArray[np.bool_]]]:
    """Canonical parameter name -> (parameter, bool array of its shape), in the mask's order.

    A tied parameter is found under each of its names, and listed under the one that the mask uses.

    Raises:
        MismatchError: the model has no such parameter, or one of another shape.
        InvalidValueError: an entry that is no bool array, or a mask that is no mapping.
    """
    if not isinstance(mask, Mapping):
        raise InvalidValueError(
            "mask", expected="a mapping of parameter name to bool array", got=type(mask).__name__
        )
    parameters = {canonical(name): value for name, value in model.named_parameters(remove_duplicate=False)}
    found: dict[str, tuple[Tensor, NDArray[np.bool_]]] = {}
    for given, entry in mask.items():
        name = canonical(str(given))
        kept = np.asarray(entry.cpu() if isinstance(entry, Tensor) else entry)
        if kept.dtype != np.bool_:
            raise InvalidValueError(f"mask of '{given}'", expected="a bool array", got=str(kept.dtype))
        if name not in parameters:
            unwrap = f"module.{name}" in parameters
            raise MismatchError(
                f"the mask names '{given}', which the model has not",
                remedy="pass the module inside the wrapper (model.module)"
                if unwrap
                else nearest(name, list(parameters)),
            )
        if kept.shape != tuple(parameters[name].shape):
            raise MismatchError(
                f"the mask of '{given}' has another shape than the parameter",
                expected=str(tuple(parameters[name].shape)),
                got=str(kept.shape),
                remedy="use the model that the mask was made for",
            )
        found[name] = (parameters[name], kept)
    return found
