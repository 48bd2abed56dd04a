"""A read-only mapping of parameter name to read-only array, with errors that name the nearest name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import UnknownNameError

__all__ = ["NamedArrays", "unknown_name"]

Item = TypeVar("Item", bound=np.generic)


def unknown_name(kind: str, got: object, known: Mapping[str, Any] | tuple[str, ...]) -> UnknownNameError:
    """The error for a name that is not among `known`: says the nearest one, or a few of them."""
    near = get_close_matches(str(got), [str(name) for name in known], n=1, cutoff=0.5)
    some = ", ".join(repr(name) for name in list(known)[:8]) + (", ..." if len(known) > 8 else "")
    remedy = f"did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {kind} {got!r}", expected=f"one of {some or 'none'}", remedy=remedy)


class NamedArrays(Mapping[str, NDArray[Item]], Generic[Item]):
    """Parameter name -> array, in a fixed order. The arrays cannot be written to: copies where they could be.

    Equal to another one with the same names, in any order, and the same shapes and values.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Item]]) -> None:
        self._arrays: dict[str, NDArray[Item]] = {}
        for name, array in arrays.items():
            if array.flags.writeable or not array.flags.owndata or not array.flags.c_contiguous:
                array = np.array(array, order="C")
                array.flags.writeable = False
            self._arrays[name] = array

    def __getitem__(self, name: str) -> NDArray[Item]:
        if name not in self._arrays:
            raise unknown_name("parameter", name, self._arrays)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        # Mapping's own would compare arrays with ==, and fail on the truth of an array.
        if not isinstance(other, NamedArrays):
            return NotImplemented
        return set(self) == set(other) and all(np.array_equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]  # equal by value, and large

    def __repr__(self) -> str:
        size = sum(array.size for array in self._arrays.values())
        return f"<{type(self).__name__}: {len(self)} parameters, {size:,} dependencies>"
