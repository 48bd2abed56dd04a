"""Blocks of an MLP: what a squeezed mask still holds together, over inputs, hidden units and outputs jointly.

Blocks run as dense products, so a mask need not stay at the density it was squeezed to: it is squeezed until
the blocks fall apart, and then everything inside them is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gradtrace.annealing.mlp import Mlp
from gradtrace.evidence.selection import best_elements

__all__ = ["Labels", "blocks_of", "component_labels", "filled", "squeezed"]

Array: TypeAlias = NDArray[np.float64]
Masks: TypeAlias = dict[str, NDArray[np.bool_]]
Labels: TypeAlias = tuple[NDArray[np.int64], ...]
"""Of each level of an MLP, which block every unit belongs to."""


def squeezed(mlp: Mlp, scores: Mapping[str, Array], density: float) -> Masks:
    """The best elements of each weight, that share of it; every input and every output keeps its best one.

    A leaf joins nothing, and without it nobody could say which block the unit belongs to.
    """
    found = {}
    for level, layer in enumerate(mlp.layers):
        for name in layer:
            score = _outputs_first(mlp, name, scores[name])
            kept = best_elements(score.ravel(), round(density * score.size)).reshape(score.shape)
            if level == 0:
                kept[score.argmax(axis=0), np.arange(score.shape[1])] = True
            if level == len(mlp.layers) - 1:
                kept[np.arange(score.shape[0]), score.argmax(axis=1)] = True
            found[name] = _outputs_first(mlp, name, kept)
    return found


def component_labels(mlp: Mlp, masks: Mapping[str, NDArray[np.bool_]]) -> Labels:
    """Connected components over all levels, numbered from 0; a unit without an edge is one of its own."""
    offsets = np.cumsum([0, *mlp.sizes])
    rows, columns = [], []
    for level, layer in enumerate(mlp.layers):
        for name in layer:
            outputs, inputs = np.nonzero(_outputs_first(mlp, name, masks[name]))
            rows.append(outputs + offsets[level + 1])
            columns.append(inputs + offsets[level])
    places = np.concatenate(rows), np.concatenate(columns)
    side = int(offsets[-1])
    graph = coo_array((np.ones(len(places[0]), np.int8), places), shape=(side, side)).tocsr()
    labels = np.asarray(connected_components(graph, directed=False)[1], np.int64)
    return tuple(np.split(labels, offsets[1:-1]))


def blocks_of(
    mlp: Mlp, masks: Mapping[str, NDArray[np.bool_]], reference: Mapping[str, NDArray[Any]], count: int
) -> Labels | None:
    """The `count` largest components as blocks 0 .. count - 1; None while there are fewer.

    A component counts if it reaches from an input to an output. What is left, such as hidden units without an
    edge and halves of a block that was squeezed too far, goes to the block with which it shares the largest
    mean `reference`, the scores from before: parameter name -> array of its shape.
    """
    labels = component_labels(mlp, masks)
    number = 1 + max(int(level.max()) for level in labels)
    through = np.all([np.bincount(level, minlength=number) > 0 for level in labels], axis=0)
    edges = np.zeros(number)
    for level, layer in enumerate(mlp.layers):
        for name in layer:
            kept = _outputs_first(mlp, name, masks[name])
            np.add.at(edges, labels[level + 1], kept.sum(axis=1))
    whole = np.flatnonzero(through)
    if len(whole) < count:
        return None
    # By size, and among equals in the order of their first inputs.
    seeds = np.sort(whole[np.argsort(-edges[whole], kind="stable")][:count])
    place = np.full(number, -1)
    place[seeds] = np.arange(count)
    near = _affinity(mlp, labels, place, reference, count)
    homes = np.where(place >= 0, place, near.argmax(axis=1))
    return tuple(homes[level] for level in labels)


def _affinity(
    mlp: Mlp, labels: Labels, place: NDArray[np.int64], reference: Mapping[str, NDArray[Any]], count: int
) -> Array:
    """(components, blocks): mean reference between the units of a component and those of a block."""
    total, pairs = np.zeros((len(place), count)), np.zeros((len(place), count))
    for level, layer in enumerate(mlp.layers):
        inside = [place[labels[k]][:, None] == np.arange(count) for k in (level, level + 1)]
        for name in layer:
            weight = _outputs_first(mlp, name, np.asarray(reference[name], np.float64))
            scale = float(weight.mean()) or 1.0  # so that each weight has a say, whatever its units are
            np.add.at(total, labels[level + 1], weight @ inside[0] / scale)
            np.add.at(total, labels[level], weight.T @ inside[1] / scale)
            np.add.at(pairs, labels[level + 1], np.broadcast_to(inside[0].sum(0), (len(weight), count)))
            np.add.at(pairs, labels[level], np.broadcast_to(inside[1].sum(0), (weight.shape[1], count)))
    return total / np.maximum(pairs, 1)


def filled(mlp: Mlp, labels: Labels) -> Masks:
    """Everything inside the blocks."""
    return {
        name: _outputs_first(mlp, name, labels[level + 1][:, None] == labels[level])
        for level, layer in enumerate(mlp.layers)
        for name in layer
    }


def _outputs_first(mlp: Mlp, name: str, values: NDArray) -> NDArray:  # type: ignore[type-arg]
    return values.T if name in mlp.inputs_first else values
