"""What a dense layer and its sub-operators cost, predicted from numbers measured once per device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import RegularGridInterpolator

from gradtrace.errors import InvalidValueError
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["CostTable"]

_FOREVER = 1e9


@dataclass(frozen=True)
class CostTable:
    """Seconds for `tokens` rows of input, on one device, dtype and number of threads.

    `gemm[i][j]` is the time of a dense layer with `inputs[i]` inputs and `outputs[j]` outputs. Running
    sub-operators costs `per_call`, `turn` and `fill` for each element of the layer's input and output and,
    for each sub-operator, `per_sub_operator`, its product, and `gather` and `scatter` for each element read
    and written (an element is one token of one feature). The product of a sub-operator is its dense time less
    the smallest in the table, which is nearly all dispatch. Where one call multiplies all sub-operators,
    products cost by the weight instead: `rates[i]` for each, where the layer has `weights[i]` in all.

    Raises:
        InvalidValueError: a grid with fewer than two sizes or not ascending, a time that is not finite and
            positive (the costs beside `gemm` may be zero), a table of another shape than its grid.
    """

    tokens: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    gemm: tuple[tuple[float, ...], ...]
    gather: float = 0.0
    scatter: float = 0.0
    fill: float = 0.0
    per_sub_operator: float = 0.0
    per_call: float = 0.0
    turn: float = 0.0
    weights: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or self.tokens < 1:
            raise _invalid("tokens", "an integer of at least 1", self.tokens)
        object.__setattr__(self, "inputs", _grid(self.inputs, "inputs"))
        object.__setattr__(self, "outputs", _grid(self.outputs, "outputs"))
        for name in ("gather", "scatter", "fill", "per_sub_operator", "per_call", "turn"):
            object.__setattr__(self, name, _seconds(getattr(self, name), name, zero=True))
        if not _is_list(self.gemm) or not all(_is_list(row) for row in self.gemm):
            raise _invalid("gemm", "rows of seconds", self.gemm)
        gemm = tuple(tuple(_seconds(value, "gemm", zero=False) for value in row) for row in self.gemm)
        object.__setattr__(self, "gemm", gemm)
        if len(gemm) != len(self.inputs) or {len(row) for row in gemm} != {len(self.outputs)}:
            raise _invalid("gemm", f"{len(self.inputs)} rows of {len(self.outputs)} seconds", self.gemm)

        if not _is_list(self.rates) or not _is_list(self.weights) or len(self.rates) != len(self.weights):
            raise _invalid("rates", "as many as weights", self.rates)
        rates = tuple(_seconds(value, "rates", zero=True) for value in self.rates)
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "weights", _grid(self.weights, "weights") if rates else ())

    def predict_dense(self, in_features: int, out_features: int) -> float:
        """Seconds of a dense layer (out_features, in_features)."""
        return float(self._products(in_features, out_features))

    def predict_sub_operators(
        self, sub_operators: Sequence[SubOperator], in_features: int, out_features: int
    ) -> float:
        """Seconds of a layer (out_features, in_features) that runs as `sub_operators`."""
        inputs = np.array([len(part.inputs) for part in sub_operators], dtype=np.float64)
        outputs = np.array([len(part.outputs) for part in sub_operators], dtype=np.float64)
        if self.rates:
            weights = (inputs * outputs).sum()
            products = weights * np.interp(np.log(max(weights, 1)), np.log(self.weights), self.rates)
        else:
            products = np.maximum(self._products(inputs, outputs) - min(map(min, self.gemm)), 0.0).sum()
        return float(
            self.per_call
            + self.tokens
            * (
                self.turn * in_features
                + self.fill * out_features
                + self.gather * inputs.sum()
                + self.scatter * outputs.sum()
            )
            + self.per_sub_operator * len(inputs)
            + products
        )

    def to_json(self) -> str:
        """The table as one JSON object."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """The table that `to_json` wrote.

        Raises:
            InvalidValueError: not JSON, a field missing or unknown, or a value that the table refuses.
        """
        try:
            values: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidValueError("cost table", expected="JSON", got=str(error)) from error
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            got = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise InvalidValueError("cost table", expected=f"an object with {sorted(names)}", got=str(got))
        return cls(**values)

    @cached_property
    def _surface(self) -> RegularGridInterpolator:
        # A product's time is close to a power law of its sides, so logarithms interpolate well.
        return RegularGridInterpolator((np.log(self.inputs), np.log(self.outputs)), np.log(self.gemm))

    def _products(self, inputs: ArrayLike, outputs: ArrayLike) -> NDArray[np.float64]:
        wide, tall = np.broadcast_arrays(np.asarray(inputs, np.float64), np.asarray(outputs, np.float64))
        # Below the grid a product costs what the smallest does; above it, time grows with the weights.
        inside_wide = np.clip(wide, self.inputs[0], self.inputs[-1])
        inside_tall = np.clip(tall, self.outputs[0], self.outputs[-1])
        points = np.stack([np.log(inside_wide), np.log(inside_tall)], axis=-1).reshape(-1, 2)
        seconds = np.exp(self._surface(points)).reshape(wide.shape)
        beyond = np.maximum(wide / inside_wide, 1.0) * np.maximum(tall / inside_tall, 1.0)
        return np.asarray(seconds * beyond, dtype=np.float64)


def _invalid(name: str, expected: str, got: object) -> InvalidValueError:
    return InvalidValueError(f"cost table: {name}", expected=expected, got=repr(got)[:80])


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _grid(sizes: Sequence[int], name: str) -> tuple[int, ...]:
    given = tuple(sizes) if _is_list(sizes) else ()
    integers = len(given) >= 2 and all(type(size) is int for size in given)
    if not integers or given[0] < 1 or not all(a < b for a, b in pairwise(given)):
        raise _invalid(name, "at least two ascending sizes from 1 on", sizes)
    return given


def _seconds(value: object, name: str, *, zero: bool) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _FOREVER:
        raise _invalid(name, "seconds of at least 0", value)
    if value == 0 and not zero:
        raise _invalid(name, "seconds above 0", value)
    return float(value)
