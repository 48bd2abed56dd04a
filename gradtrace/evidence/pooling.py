"""The weights that are tested together: one alone, those of an edge, or those of a tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from gradtrace.evidence.edges import Block
from gradtrace.evidence.granularity import Blocks
from gradtrace.evidence.kolmogorov import ks_pvalue, ks_statistic
from gradtrace.evidence.null import Null
from gradtrace.evidence.reference import Empirical

__all__ = ["Pool", "pool_of"]

Array: TypeAlias = NDArray[np.float64]
Weights: TypeAlias = Sequence[NDArray[np.floating[Any]]]


class Pool(Protocol):
    """How the parameters `names` fall into units; `single` when every element is one of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that share the units."""

    @property
    def single(self) -> bool:
        """Whether every element is a unit of its own."""

    def fisher(self, pvalues: Sequence[Array]) -> Array:
        """Pooled p-values of the units, from those of each parameter's elements."""

    def mean(self, values: Sequence[Array]) -> Array:
        """Mean over each unit."""

    def kolmogorov(self, nulls: Sequence[Null], weights: Weights) -> tuple[Array, Array]:
        """(p, D) of the units."""

    def spread(self, units: Array, name: str) -> Array:
        """Give every element of parameter `name` its unit's number."""


def pool_of(name: str, shape: tuple[int, ...], blocks: Mapping[str, Block], per: str) -> Pool:
    """The pool that a parameter belongs to."""
    if name in blocks:
        return _Edges(blocks[name])
    return _Tiles(name, Blocks.of(shape, "tile" if per == "tile" else "element"))


class _Edges:
    single = False

    def __init__(self, block: Block) -> None:
        self.block, self.names = block, (block.up, block.down)

    def fisher(self, pvalues: Sequence[Array]) -> Array:
        return self.block.pvalue(*pvalues)

    def mean(self, values: Sequence[Array]) -> Array:
        return self.block.pool(*values) / (2 * self.block.channels)

    def kolmogorov(self, nulls: Sequence[Null], weights: Weights) -> tuple[Array, Array]:
        low, high = zip(*(_positions(n, w) for n, w in zip(nulls, weights, strict=True)), strict=True)
        statistic = ks_statistic(self.block.gather(*low), self.block.gather(*high))
        return ks_pvalue(statistic, 2 * self.block.channels, _reference(nulls)), statistic

    def spread(self, units: Array, name: str) -> Array:
        return self.block.spread(units, name)


class _Tiles:
    def __init__(self, name: str, blocks: Blocks) -> None:
        self.blocks, self.names = blocks, (name,)
        self.single = bool((blocks.sizes == 1).all())

    def fisher(self, pvalues: Sequence[Array]) -> Array:
        with np.errstate(divide="ignore"):  # p = 0 pools to p = 0
            statistic = -2 * self.blocks.means(np.log(pvalues[0])) * self.blocks.sizes
        return np.asarray(chi2.sf(statistic, 2 * self.blocks.sizes))

    def mean(self, values: Sequence[Array]) -> Array:
        return self.blocks.means(values[0])

    def kolmogorov(self, nulls: Sequence[Null], weights: Weights) -> tuple[Array, Array]:
        low, high = (self.blocks.matrix(one) for one in _positions(nulls[0], weights[0]))
        pvalue, statistic = np.empty(self.blocks.sizes.shape), np.empty(self.blocks.sizes.shape)
        for units, rows, columns in self.blocks.groups():
            samples = [_samples(one[np.ix_(rows, columns)], units.shape) for one in (low, high)]
            found = ks_statistic(*samples)
            pvalue[units.ravel()] = ks_pvalue(found, samples[0].shape[-1], _reference(nulls))
            statistic[units.ravel()] = found
        return pvalue, statistic

    def spread(self, units: Array, name: str) -> Array:
        return self.blocks.spread(units.ravel())


def _samples(matrix: Array, grid: tuple[int, ...]) -> Array:
    """(rows, columns) of equal units -> (units, elements of a unit), units in row-major order."""
    tall, wide = grid
    height, width = matrix.shape[0] // tall, matrix.shape[1] // wide
    return matrix.reshape(tall, height, wide, width).swapaxes(1, 2).reshape(tall * wide, height * width)


def _positions(null: Null, weight: NDArray[np.floating[Any]]) -> tuple[Array, Array]:
    """F(w-) and F(w), which differ only where the null is itself a sample."""
    if not isinstance(null.initializer, Empirical):
        place = null.position(weight)
        return place, place
    ordered, weight = null.initializer.ordered, np.asarray(weight, np.float64)
    return (
        np.searchsorted(ordered, weight, "left") / ordered.size,
        np.searchsorted(ordered, weight, "right") / ordered.size,
    )


def _reference(nulls: Sequence[Null]) -> int | None:
    sizes = [n.initializer.ordered.size for n in nulls if isinstance(n.initializer, Empirical)]
    return min(sizes) if sizes else None
