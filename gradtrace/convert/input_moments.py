"""First and second moments of the inputs of linear layers, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError

__all__ = ["InputMoments", "LayerMoments"]


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Of the inputs x of one layer: `mean` E x (I,) and `second` E x x^T (I, I), float64, over `positions`.

    Raises:
        InvalidValueError: shapes that do not fit, numbers that are not finite, no position.
    """

    positions: int
    mean: NDArray[np.float64]
    second: NDArray[np.float64]

    def __post_init__(self) -> None:
        size = len(self.mean)
        if self.mean.shape != (size,) or self.second.shape != (size, size):
            got = f"{self.mean.shape} and {self.second.shape}"
            raise InvalidValueError("input moments", expected="shapes (I,) and (I, I)", got=got)
        if self.positions < 1:
            raise InvalidValueError(
                "input moments", expected="at least one position", got=str(self.positions)
            )
        if not np.isfinite(self.mean).all() or not np.isfinite(self.second).all():
            raise InvalidValueError("input moments", expected="finite numbers", got="NaN or infinity")


class InputMoments(Mapping[str, LayerMoments]):
    """Layer name -> LayerMoments, each read when it is asked for. `source` says in words where they are from.

    A layer that has none is not in it.
    """

    def __init__(self, source: str, names: Iterable[str], read: Callable[[str], LayerMoments]) -> None:
        self.source = source
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> LayerMoments:
        if name not in self._names:
            raise UnknownNameError(
                f"input moments of '{name}'",
                expected=", ".join(self._names) or "none",
                got="none of that name",
            )
        try:
            return self._read(name)
        except InvalidValueError as error:
            raise InvalidValueError(f"layer '{name}': {error.message}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<InputMoments of {len(self)} layers from {self.source}>"
