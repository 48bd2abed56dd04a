"""The costs of sub-operators, fitted to the times of layers whose counts of everything that costs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from gradtrace.structure.cost import CostTable
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["Structure", "fitted", "structures_of", "weights_of", "wide_structures"]

_WEIGHTS = (1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
_MOST_PRODUCTS = 1 << 31  # some 0.05 seconds of one thread: beyond it, time grows in proportion
_WIDE, _TALL, _ROWS = 1280, 4096, 64  # inputs, most outputs, outputs of a sub-operator


class Structure(NamedTuple):
    """A layer to be timed."""

    in_features: int
    out_features: int
    parts: tuple[SubOperator, ...]


def fitted(
    table: CostTable, structures: Sequence[Structure], seconds: Sequence[float], weights: tuple[int, ...] = ()
) -> CostTable:
    """`table`, which knows products only, with all other costs, from what each structure took.

    With `weights` the cost of products is fitted too, as rates by the layer's weights.
    """
    taken = np.array(seconds)
    counts = np.array([_counts(structure, table.tokens) for structure in structures], dtype=np.float64)
    if weights:
        counts = np.hstack([np.array([_shares(structure, weights) for structure in structures]), counts])
        left = taken
    else:
        left = taken - [table.predict_sub_operators(parts, i, o) for i, o, parts in structures]
    # Relative errors count, and columns of like size keep the solver well conditioned.
    scale = counts.max(axis=0)
    costs, _ = nnls(counts / scale / taken[:, None], left / taken)
    found = [float(cost) for cost in costs / scale]
    gather, scatter, fill, turn, per_sub_operator, per_call = found[len(weights) :]
    return replace(
        table,
        gather=gather,
        scatter=scatter,
        fill=fill,
        turn=turn,
        per_sub_operator=per_sub_operator,
        per_call=per_call,
        weights=weights,
        rates=tuple(found[: len(weights)]),
    )


def structures_of(side: int) -> list[Structure]:
    """Square layers and one that is not, so that no count goes along with another."""
    quarter, half, slim = side // 4, side // 2, max(side // 64, 1)
    shapes = [(1, slim, slim), (1, side, quarter), (1, half, half), (1, half, side), (4, half, quarter)]
    shapes += [
        (4, slim, quarter),
        (4, quarter, slim),
        (slim, slim, slim),
        (16, half, side // 16),
        (16, slim, 1),
    ]
    large = [Structure(side, side, _spread(side, *shape)) for shape in shapes if shape[0] * shape[2] <= side]
    small = (SubOperator(np.arange(quarter // 2) * 2, np.arange(quarter)),)
    flat = Structure(side, quarter, ())
    return [
        Structure(side, side, ()),
        Structure(quarter, quarter, ()),
        flat,
        Structure(quarter, quarter, small),
        *large,
    ]


def weights_of(tokens: int) -> tuple[int, ...]:
    """Of a layer, in all: from what one core's nearest cache holds to what no cache does, or takes long."""
    return _WEIGHTS[:2] + tuple(weights for weights in _WEIGHTS[2:] if weights * tokens <= _MOST_PRODUCTS)


def wide_structures(weights: Sequence[int]) -> list[Structure]:
    """Layers of so many weights each, in sub-operators of 64 outputs with many inputs and with few."""
    found = []
    for total in weights:
        for inputs in (1024, 128, 16):
            outputs = total // inputs
            if outputs <= _TALL:
                source = np.linspace(0, _WIDE - 1, inputs).astype(np.int64)
                cuts = range(0, outputs, _ROWS)
                parts = [SubOperator(source, np.arange(at, min(at + _ROWS, outputs))) for at in cuts]
                found.append(Structure(_WIDE, outputs, tuple(parts)))
    return found


def _spread(side: int, count: int, inputs: int, outputs: int) -> tuple[SubOperator, ...]:
    # Indices a stride apart, as a mask's are; outputs are disjoint.
    source = np.linspace(0, side - 1, inputs).astype(np.int64)
    return tuple(SubOperator(source, np.arange(outputs) * count + number) for number in range(count))


def _counts(structure: Structure, tokens: int) -> list[int]:
    """How many elements are gathered, scattered, filled and turned, the sub-operators, and the one call."""
    inputs, outputs, parts = structure
    gathered, scattered = sum(len(part.inputs) for part in parts), sum(len(part.outputs) for part in parts)
    return [tokens * gathered, tokens * scattered, tokens * outputs, tokens * inputs, len(parts), 1]


def _shares(structure: Structure, weights: tuple[int, ...]) -> NDArray[np.float64]:
    """How the layer's weights count towards each of the rates, between which costs are interpolated."""
    total = max(sum(part.size for part in structure.parts), 1)
    places = np.eye(len(weights))
    at = np.array([np.interp(np.log(total), np.log(weights), place) for place in places])
    return np.asarray(at * total, dtype=np.float64)
