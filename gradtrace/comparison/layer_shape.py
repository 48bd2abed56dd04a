"""What a mask leaves of one layer: how much, and whether that falls apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtrace.structure.components import components
from gradtrace.structure.halves import cross_edges

__all__ = ["LayerShape", "edges", "layer_shape", "together"]

# Beyond, the cut that minimises cross edges is not looked for: a mask of this size takes about a second.
MOST_CUT = 4_000_000


@dataclass(frozen=True)
class LayerShape:
    """Counts of one layer's mask, or summed over layers.

    `size` and `kept` count dependencies. The rest is of the graph whose nodes are outputs and inputs, or
    channels, and in which an edge stands for all kept dependencies between two of them: `edges` kept,
    `outputs` and `inputs` that have one, `components`, edges in the `largest`, `inside`: pairs of an output
    and an input of one component, which is what runs where each is executed densely; `all_pairs` of them.
    `cross`: edges between the two halves of the best balanced cut found, None where it was not looked for.
    """

    size: int
    kept: int
    edges: int
    outputs: int
    inputs: int
    components: int
    largest: int
    inside: int
    all_pairs: int
    cross: int | None

    @property
    def density(self) -> float:
        """Share of the dependencies that is kept; 1 where there are none."""
        return self.kept / self.size if self.size else 1.0

    @property
    def collapsed(self) -> bool:
        """Whether no connection is left from any input to any output."""
        return self.size > 0 and self.kept == 0


def layer_shape(mask: NDArray[np.bool_], *, flipped: bool = False, groups: int = 1) -> LayerShape:
    """The shape of a mask of two or more dimensions; `flipped`: its first dimension counts inputs."""
    graph = edges(mask, flipped=flipped, groups=groups)
    found = components(graph)
    degrees = graph.sum(axis=1)
    total = int(degrees.sum())
    return LayerShape(
        size=int(mask.size),
        kept=int(mask.sum()),
        edges=total,
        outputs=int(graph.any(axis=1).sum()),
        inputs=int(graph.any(axis=0).sum()),
        components=len(found),
        largest=max((int(degrees[one.outputs].sum()) for one in found), default=0),
        inside=sum(one.size for one in found),
        all_pairs=int(graph.size),
        cross=cross_edges(graph) if 0 < graph.size <= MOST_CUT else None,
    )


def edges(mask: NDArray[np.bool_], *, flipped: bool = False, groups: int = 1) -> NDArray[np.bool_]:
    """(outputs, inputs): whether any dependency between two channels is kept.

    The first dimension of a grouped convolution counts all channels of its side, the second those of one
    group of the other; groups share nothing.
    """
    taps = mask.reshape(*mask.shape[:2], math.prod(mask.shape[2:]))
    flat: NDArray[np.bool_] = np.logical_or.reduce(taps, axis=2)
    if groups > 1:
        rows, wide = flat.shape[0] // groups, flat.shape[1]
        whole = np.zeros((flat.shape[0], wide * groups), np.bool_)
        for k in range(groups):
            part = slice(k * rows, (k + 1) * rows)
            whole[part, k * wide : (k + 1) * wide] = flat[part]
        flat = whole
    return np.ascontiguousarray(flat.T if flipped else flat)


def together(layers: Mapping[str, LayerShape]) -> LayerShape:
    """All layers' counts added up; `largest` adds each layer's own, for no component spans two layers."""
    every = list(layers.values())

    def total(name: str) -> int:
        return sum(getattr(one, name) for one in every)

    counts = ("size", "kept", "edges", "outputs", "inputs", "components", "largest", "inside", "all_pairs")
    cross = None if any(one.cross is None for one in every) else total("cross")
    return LayerShape(**{name: total(name) for name in counts}, cross=cross)
