"""Whole hidden units of an MLP: what leads to a unit and what it leads to goes or stays together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.annealing.mlp import Mlp
from gradtrace.evidence.selection import best_elements

__all__ = ["best_neurons"]

Array: TypeAlias = NDArray[np.float64]


def best_neurons(mlp: Mlp, scores: Mapping[str, Array], density: float) -> dict[str, NDArray[np.bool_]]:
    """The share `density` of the units of every hidden level, at least one, by the scores of their weights.

    Each weight's scores are taken relative to their mean, for two layers need have no scale in common.
    """
    kept = [np.ones(size, np.bool_) for size in mlp.sizes]
    for level in range(1, len(mlp.sizes) - 1):
        value = np.zeros(mlp.sizes[level])
        for name in mlp.layers[level - 1]:
            value += _relative(scores[name]).sum(axis=0 if name in mlp.inputs_first else 1)
        for name in mlp.layers[level]:
            value += _relative(scores[name]).sum(axis=1 if name in mlp.inputs_first else 0)
        kept[level] = best_elements(value, max(1, round(density * len(value))))
    found = {}
    for level, layer in enumerate(mlp.layers):
        for name in layer:
            mask = np.logical_and.outer(kept[level + 1], kept[level])
            found[name] = mask.T if name in mlp.inputs_first else mask
    return found


def _relative(scores: Array) -> Array:
    return scores / (float(np.abs(scores).mean()) or 1.0)
