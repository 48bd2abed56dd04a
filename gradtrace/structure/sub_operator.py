"""One independent piece of a linear layer: some inputs, some outputs, and a dense weight between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradtrace.errors import InvalidValueError

__all__ = ["SubOperator"]


@dataclass(frozen=True, eq=False)
class SubOperator:
    """The block that computes `outputs` from `inputs`; its weight (len(outputs), len(inputs)) is the layer's.

    Both are int64 arrays of distinct indices, neither empty, in the order in which the block reads and writes
    them; they are copied and read-only.

    Raises:
        InvalidValueError: an index is no integer, negative or repeated, or there is none.
    """

    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", _indices(self.inputs, "inputs"))
        object.__setattr__(self, "outputs", _indices(self.outputs, "outputs"))

    @property
    def size(self) -> int:
        """How many weights the block holds."""
        return len(self.inputs) * len(self.outputs)

    def to_json(self) -> dict[str, list[int]]:
        """Plain lists: {"inputs": [...], "outputs": [...]}."""
        return {"inputs": self.inputs.tolist(), "outputs": self.outputs.tolist()}

    @classmethod
    def from_json(cls, value: object) -> SubOperator:
        """The sub-operator that `to_json` wrote, checked like a stranger's.

        Raises:
            InvalidValueError: anything but two lists of distinct non-negative integers.
        """
        if not isinstance(value, Mapping) or set(value) != {"inputs", "outputs"}:
            raise InvalidValueError(
                "sub-operator", expected='an object with "inputs" and "outputs"', got=repr(value)[:80]
            )
        for name in ("inputs", "outputs"):
            listed: Any = value[name]
            # bool is an int to Python, and numpy would round a float: only plain integers are indices.
            if not isinstance(listed, list) or not all(type(index) is int for index in listed):
                raise InvalidValueError(
                    f"sub-operator {name}", expected="a list of integers", got=repr(listed)[:80]
                )
        return cls(value["inputs"], value["outputs"])


def _indices(values: ArrayLike, what: str) -> NDArray[np.int64]:
    try:
        given = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise InvalidValueError(f"sub-operator {what}", expected="integers", got=str(error)) from error
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iu":
        raise InvalidValueError(
            f"sub-operator {what}",
            expected="a non-empty list of integers",
            got=f"shape {given.shape} of {given.dtype}",
        )
    indices = given.astype(np.int64)  # always a copy, so that nobody else can write to it
    if indices.min() < 0:
        raise InvalidValueError(
            f"sub-operator {what}", expected="indices of at least 0", got=str(indices.min())
        )
    ordered = np.sort(indices)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if repeated.size:
        raise InvalidValueError(
            f"sub-operator {what}", expected="distinct indices", got=f"{repeated[0]} twice"
        )
    indices.flags.writeable = False
    return indices
