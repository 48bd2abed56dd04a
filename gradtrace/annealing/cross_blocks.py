"""Blocks-to-be of an MLP that is not in blocks yet, and how strongly a group lasso presses what lies between.

For a weight w in the group G of all weights from one block to another the pressure is sqrt(|G|) / ||G||: the
proximal step of the group lasso (Yuan and Lin 2006), reweighted at every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.annealing.blocks import Labels
from gradtrace.annealing.mlp import Mlp
from gradtrace.structure.mlp_blocks import mlp_coclusters

__all__ = ["coclustered", "pressures", "spread"]

Array: TypeAlias = NDArray[np.float64]


def coclustered(mlp: Mlp, weights: Mapping[str, Array], count: int) -> Labels:
    """Balanced co-clusters of nonnegative `weights`: of the first two layers jointly, then level by level."""
    layers = [
        sum((_outputs_first(mlp, name, weights[name]) for name in layer), np.zeros(()))
        for layer in mlp.layers
    ]
    first = mlp_coclusters(layers[0], layers[1], count)
    labels = [first.inputs, first.hidden, first.outputs]
    for layer in layers[2:]:
        labels.append((layer @ (labels[-1][:, None] == np.arange(count))).argmax(axis=1))
    return tuple(np.maximum(level, 0) for level in labels)


def pressures(mlp: Mlp, labels: Labels, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Parameter name -> (blocks of outputs, blocks of inputs): 0 inside a block and where all is zero."""
    found = {}
    for level, layer in enumerate(mlp.layers):
        count = 1 + int(max(labels[level].max(), labels[level + 1].max()))
        ins, outs = ((labels[k][:, None] == np.arange(count)).astype(np.float64) for k in (level, level + 1))
        sizes = np.outer(outs.sum(0), ins.sum(0))
        for name in layer:
            norms = np.sqrt(outs.T @ _outputs_first(mlp, name, weights[name]) ** 2 @ ins)
            pressure = np.divide(np.sqrt(sizes), norms, out=np.zeros_like(norms), where=norms > 0)
            np.fill_diagonal(pressure, 0)
            found[name] = pressure
    return found


def spread(mlp: Mlp, labels: Labels, pressure: Mapping[str, Array]) -> dict[str, Array]:
    """What `pressures` found, as it lies on each weight: parameter name -> array of its shape."""
    return {
        name: _outputs_first(mlp, name, pressure[name][labels[level + 1][:, None], labels[level]])
        for level, layer in enumerate(mlp.layers)
        for name in layer
    }


def _outputs_first(mlp: Mlp, name: str, values: Array) -> Array:
    return values.T if name in mlp.inputs_first else values
