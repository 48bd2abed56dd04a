"""Weights that stay in a safetensors file until they are asked for, one parameter at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gradtrace.errors import InvalidValueError, MismatchError, UnreadableFileError
from gradtrace.evidence.whole_file import checked_path
from gradtrace.ledger.names import canonical

__all__ = ["StoredWeight", "StoredWeights", "check_finite"]

Array: TypeAlias = NDArray[Any]

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PRECISION = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}


@dataclass(frozen=True)
class StoredWeight:
    """Where one weight lies in its file. `rounding` is the spacing of its dtype next to 1."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rounding(self) -> float:
        """Spacing of numbers next to 1."""
        return _PRECISION[self.dtype]

    def read(self) -> Array:
        """The weight as float64 where it was that, else float32. Raises UnreadableFileError."""
        count = math.prod(self.shape)
        try:
            raw = np.fromfile(self.path, _FLOATS[self.dtype], count, offset=self.offset)
        except OSError as error:
            raise UnreadableFileError(
                f"weights file '{self.path}' cannot be read", got=error.strerror or str(error)
            ) from error
        if raw.size != count:
            raise UnreadableFileError(f"weights file '{self.path}' was cut short since it was opened")
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float64 if self.dtype == "F64" else np.float32, copy=False).reshape(self.shape)


class StoredWeights(Mapping[str, Array]):
    """Name -> weight, read from the file at each access and checked to be finite; small to send elsewhere."""

    def __init__(self, places: Mapping[str, StoredWeight]) -> None:
        self.places = dict(places)

    @classmethod
    def of(cls, path: str | PathLike[str]) -> StoredWeights:
        """The floating-point weights of a safetensors file, under canonical names.

        Raises UnreadableFileError for a file that is missing, damaged or of another kind, InvalidValueError
        for what is no path, MismatchError for two weights of one name.
        """
        target = checked_path(path, "weights file")
        places: dict[str, StoredWeight] = {}
        try:
            with target.open("rb") as file, safe_open(target, framework="numpy"):
                # Checked by safe_open: lengths, offsets and dtypes fit each other and the file.
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length))
        except (SafetensorError, ValueError) as error:
            raise UnreadableFileError(
                f"weights file '{target}' is damaged or no safetensors file",
                got=str(error)[:120],
                remedy="pass the model or its state_dict, or save it with safetensors",
            ) from error
        except OSError as error:
            raise UnreadableFileError(
                f"weights file '{target}' cannot be read", got=error.strerror or str(error)[:120]
            ) from error
        header.pop("__metadata__", None)
        for raw, told in header.items():
            name = canonical(raw)
            if name in places:
                raise MismatchError(f"weights file '{target}' holds {name!r} twice", got=f"{raw!r} too")
            if told["dtype"] in _FLOATS:
                offset = 8 + length + told["data_offsets"][0]
                places[name] = StoredWeight(target.absolute(), told["dtype"], tuple(told["shape"]), offset)
        return cls(places)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: place.shape for name, place in self.places.items()}

    def chosen(self, names: Mapping[str, str]) -> StoredWeights:
        """Some of them: new name -> name here."""
        return StoredWeights({new: self.places[name] for new, name in names.items()})

    def __getitem__(self, name: str) -> Array:
        array = self.places[name].read()
        check_finite(name, array)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def check_finite(name: str, array: NDArray[np.floating[Any]]) -> None:
    """Raise InvalidValueError for weights that are not finite."""
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise InvalidValueError(
            f"weights of {name!r}",
            expected="finite numbers",
            got=f"{bad} of {array.size} NaN or infinite",
            remedy="score a checkpoint from before the run diverged",
        )
