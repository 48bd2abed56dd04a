"""Which dependencies are kept, and on what grounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.mask_file import read_mask, write_mask
from gradtrace.evidence.named_arrays import NamedArrays

__all__ = ["Mask", "as_bools"]


class Mask(NamedArrays[np.bool_]):
    """Parameter name -> bool array of the parameter's shape, True = kept. Read-only; equal by value.

    `provenance` is JSON: what `score` and `select` were asked, empty for a mask made by hand. Raises
    InvalidValueError for what are not bool arrays under names, for no array at all, and for a provenance that
    is not JSON.
    """

    def __init__(self, mapping: Mapping[str, Any], provenance: Mapping[str, Any] | None = None) -> None:
        if not isinstance(mapping, Mapping) or not mapping:
            raise InvalidValueError(
                "mask",
                expected="a mapping from at least one parameter name to a bool array",
                got="an empty one" if isinstance(mapping, Mapping) else type(mapping).__name__,
            )
        super().__init__({name: _bools(name, value) for name, value in mapping.items()})
        try:
            # A copy that is JSON for certain, so that saving cannot fail on it later.
            self.provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(
                "mask provenance", expected="plain JSON values", got=str(error)
            ) from error

    @property
    def density(self) -> float:
        """Share of all dependencies that is kept; 1 where there are none."""
        size = sum(kept.size for kept in self.values())
        return sum(int(kept.sum()) for kept in self.values()) / size if size else 1.0

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; a file that is there is replaced.

        Raises InvalidValueError for a path that cannot be written to, StorageError when the disk fails.
        """
        write_mask(dict(self), self.provenance, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a mask that `save` wrote. Nothing in the file is trusted; no pickle is ever read.

        Raises UnreadableFileError for a file that is missing, damaged or no mask, UnsupportedFormatError for
        one of a newer format, InvalidValueError for what is no path.
        """
        return cls(*read_mask(path))

    def __repr__(self) -> str:
        return f"<Mask: {len(self)} parameters, density {self.density:.4g}>"


def as_bools(value: Any, what: str) -> NDArray[np.bool_]:
    """A bool tensor or array-like of any shape as numpy. Raises InvalidValueError, naming it `what`."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, bfloat16, on the meta device
        raise InvalidValueError(what, expected="a bool array", got=str(error)[:120]) from error
    if array.dtype != np.bool_:
        raise InvalidValueError(
            what, expected="a bool array", got=f"{array.dtype}", remedy="pass e.g. array != 0"
        )
    return array


def _bools(name: object, value: Any) -> NDArray[np.bool_]:
    # The file format keeps one name for itself, and what cannot be printed is no name that load would take.
    if not isinstance(name, str) or not name or not name.isprintable() or name == "__metadata__":
        raise InvalidValueError("mask", expected="names of parameters as keys", got=repr(name))
    return as_bools(value, f"mask of {name!r}")
