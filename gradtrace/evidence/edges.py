"""Which parameters form an edge, and the pooled p-value of one.

In a d -> k*d -> d block (k = 4 in a transformer's MLP) neuron j reaches neuron i over k channels. Channel c
holds the hidden units c*d .. (c+1)*d - 1, one for each neuron, so that it has one d x d matrix on the way up
and one on the way down. As arXiv 2601.15871 has it, the edge j -> i is the 2k numbers

    up[c*d + i, j]  and  down[i, c*d + j],   c = 0 .. k-1      (4 + 4 numbers for k = 4)

with `up` the weight (k*d, d) and `down` the weight (d, k*d) of two Linears. Every parameter of both belongs
to exactly one of the d*d edges.

The p-values of an edge's parameters are pooled by Fisher's method (Statistical Methods for Research Workers,
1925, section 21.1): -2 Sum log p is chi-square with 4k degrees of freedom when the p-values are independent
and uniform, which they are under an exact null. A chi-square on the *weights* would not be: uniform weights
have light tails.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.evidence.definition import Study
from gradtrace.evidence.named_arrays import unknown_name

__all__ = ["Block", "blocks_of"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """The names of a d -> k*d -> d block's two weights, with d and k."""

    up: str
    down: str
    neurons: int
    channels: int

    def pool(self, up: Array, down: Array) -> Array:
        """Sum over each edge's parameters: (k*d, d) and (d, k*d) -> (d, d), indexed [i, j]."""
        k, d = self.channels, self.neurons
        return np.asarray(up.reshape(k, d, d).sum(axis=0) + down.reshape(d, k, d).sum(axis=1))

    def pvalue(self, up: Array, down: Array) -> Array:
        """Fisher's pooled p-value of every edge, (d, d), from the p-values of the two weights."""
        with np.errstate(divide="ignore"):  # p = 0 pools to p = 0
            statistic = -2 * self.pool(np.log(up), np.log(down))
        return np.asarray(chi2.sf(statistic, 4 * self.channels))

    def gather(self, up: Array, down: Array) -> Array:
        """Each edge's parameters side by side: (k*d, d) and (d, k*d) -> (d, d, 2k)."""
        k, d = self.channels, self.neurons
        parts = np.moveaxis(up.reshape(k, d, d), 0, 2), np.moveaxis(down.reshape(d, k, d), 1, 2)
        return np.concatenate(parts, axis=2)

    def spread(self, edges: Array, name: str) -> Array:
        """Give every parameter of weight `name` its edge's number: (d, d) -> (k*d, d) or (d, k*d)."""
        return np.tile(edges, (self.channels, 1) if name == self.up else (1, self.channels))


def blocks_of(study: Study, edges: Iterable[tuple[str, str]]) -> dict[str, Block]:
    """Weight name -> its block, for pairs (up, down) of weight names.

    Raises UnknownNameError for a name that is not scored, MismatchError for shapes that form no block, and
    InvalidValueError for what is no pair or uses a weight twice.
    """
    found: dict[str, Block] = {}
    remedy = "pass e.g. edges=[('mlp.up.weight', 'mlp.down.weight')]"
    if isinstance(edges, str) or not isinstance(edges, Iterable):
        raise InvalidValueError("edges", expected="pairs (up, down) of names", got=repr(edges), remedy=remedy)
    for pair in edges:
        if isinstance(pair, str) or not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidValueError(
                "edges", expected="pairs (up, down) of names", got=repr(pair), remedy=remedy
            )
        for name in pair:
            if name not in study.weights:
                raise unknown_name("parameter in edges", name, study.weights)
        up, down = pair
        if up == down or up in found or down in found:
            raise InvalidValueError("edges", expected="every weight in one place only", got=repr(pair))
        (tall, d), (out, wide) = (_matrix(study, name) for name in pair)
        if d == 0 or out != d or wide != tall or tall % d:
            raise MismatchError(
                f"weights {up!r} and {down!r} do not form a d -> k*d -> d block",
                expected="shapes (k*d, d) and (d, k*d)",
                got=f"{(tall, d)} and {(out, wide)}",
                remedy="leave this pair out of edges, its weights are then tested one by one",
            )
        found[up] = found[down] = Block(up, down, d, tall // d)
    return found


def _matrix(study: Study, name: str) -> tuple[int, int]:
    shape = study.weights[name].shape
    if len(shape) != 2:
        raise MismatchError(f"weight {name!r} in edges", expected="two dimensions", got=f"shape {shape}")
    return shape
