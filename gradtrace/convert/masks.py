"""A mask's entries beside the parameters they speak of, checked name by name and shape by shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradtrace.convert.linears import nearest
from gradtrace.errors import InvalidValueError, MismatchError, UnsupportedError
from gradtrace.evidence.mask import as_bools
from gradtrace.ledger.names import canonical

__all__ = ["masks_by_name"]


def masks_by_name(
    model: nn.Module, mask: Mapping[str, NDArray[np.bool_]]
) -> dict[str, tuple[Tensor, NDArray[np.bool_]]]:
    """Canonical parameter name -> (parameter, bool array of its shape), in the mask's order.

    A tied parameter is found under each of its names, and listed under the first that the mask uses.

    Raises:
        MismatchError: the model has no such parameter, or one of another shape, or the mask names one
        parameter twice and differs.
        UnsupportedError: a parameter of a lazy module that has no shape yet.
        InvalidValueError: an entry that is no bool array, or a mask that is no mapping.
    """
    if not isinstance(mask, Mapping):
        raise InvalidValueError(
            "mask", expected="a mapping of parameter name to bool array", got=type(mask).__name__
        )
    parameters = {canonical(name): value for name, value in model.named_parameters(remove_duplicate=False)}
    found: dict[str, tuple[Tensor, NDArray[np.bool_]]] = {}
    first: dict[int, str] = {}
    for given, entry in mask.items():
        name = canonical(str(given))
        kept = as_bools(entry, f"mask of '{given}'")
        if name not in parameters:
            unwrap = f"module.{name}" in parameters
            raise MismatchError(
                f"the mask names '{given}', which the model has not",
                remedy="pass the module inside the wrapper (model.module)"
                if unwrap
                else nearest(name, list(parameters)),
            )
        if is_lazy(parameters[name]):
            raise UnsupportedError(
                f"parameter '{name}' has no shape yet", remedy="run the model once on a batch"
            )
        if kept.shape != tuple(parameters[name].shape):
            raise MismatchError(
                f"the mask of '{given}' has another shape than the parameter",
                expected=str(tuple(parameters[name].shape)),
                got=str(kept.shape),
                remedy="use the model that the mask was made for",
            )
        known = first.setdefault(id(parameters[name]), name)
        if known in found and not np.array_equal(found[known][1], kept):
            raise MismatchError(
                "the mask says two things of one parameter",
                got=f"'{known}' and '{given}'",
                remedy="name it once",
            )
        found.setdefault(known, (parameters[name], kept))
    return found
