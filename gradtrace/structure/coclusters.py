"""Outputs and inputs together in K blocks, with as little as possible between the blocks.

What lies inside the blocks runs as K dense sub-operators. The rest, the residual, is dropped by keeping
`inside(mask)` only, or kept in sub-operators of its own: `covering(mask)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.structure.balanced_blocks import balanced_blocks
from gradtrace.structure.hypergraph import partitioned_graph
from gradtrace.structure.spectral_blocks import spectral_blocks
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["METHODS", "CoClusters", "checked_blocks", "checked_weights", "coclusters"]


@dataclass(frozen=True, eq=False)
class CoClusters:
    """The block of each output and of each input, as int64 labels from 0 on; -1 is in no block.

    Raises:
        InvalidValueError: labels that are not one row of integers of at least -1.
    """

    outputs: NDArray[np.int64]
    inputs: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name in ("outputs", "inputs"):
            given = np.asarray(getattr(self, name))
            if given.ndim != 1 or given.dtype.kind not in "iu" or (given.size and given.min() < -1):
                raise InvalidValueError(
                    f"labels of {name}", expected="integers of at least -1", got=repr(given)[:80]
                )
            labels = given.astype(np.int64)
            labels.flags.writeable = False
            object.__setattr__(self, name, labels)

    @property
    def sub_operators(self) -> tuple[SubOperator, ...]:
        """One dense piece for each block that has outputs and inputs, in the order of the labels."""
        found = np.intersect1d(self.outputs, self.inputs)
        return tuple(
            SubOperator(np.flatnonzero(self.inputs == block), np.flatnonzero(self.outputs == block))
            for block in found[found >= 0]
        )

    def inside(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What of `mask` (outputs, inputs) lies within the blocks."""
        within: NDArray[np.bool_] = (self.outputs[:, None] == self.inputs) & (self.inputs >= 0)
        return mask & within

    def residual(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What of `mask` (outputs, inputs) lies between the blocks."""
        return mask & ~self.inside(mask)

    def covering(self, mask: NDArray[np.bool_]) -> tuple[SubOperator, ...]:
        """Sub-operators that hold each kept dependency of `mask` (outputs, inputs) exactly once.

        First the blocks, without what is dead in them; then, for each block, its outputs that also read
        elsewhere, with all that they read there.
        """
        inside = self.inside(mask)
        within = [_trimmed(inside, self.outputs == block) for block in range(-1, self._blocks)]
        between = [_trimmed(mask & ~inside, self.outputs == block) for block in range(-1, self._blocks)]
        return tuple(part for part in within + between if part is not None)

    @property
    def _blocks(self) -> int:
        return 1 + max(int(labels.max(initial=-1)) for labels in (self.outputs, self.inputs))


def coclusters(
    weights: ArrayLike, blocks: int, *, seed: int = 0, by: str = "alternating", imbalance: float = 0.1
) -> CoClusters:
    """`blocks` co-clusters of `weights` (outputs, inputs): labels 0 to blocks - 1 for all outputs and inputs.

    Looks for the blocks that leave least weight between them. No block holds more than (1 + imbalance) times
    its equal share of the outputs, or of the inputs; a block may stay empty. The same arguments give the same
    labels.

    Args:
        weights: nonnegative and finite, (outputs, inputs): a mask, magnitudes or scores.
        blocks: K, at least 1.
        seed: of what is drawn at random.
        by: "alternating", which needs nothing but scipy (see `balanced_blocks`); "hypergraph", by Mt-KaHyPar,
            which balances outputs and inputs together; or "spectral", by scikit-learn, which does not
            balance (both with the extra `partition`).
        imbalance: at least 0; not for methods that do not balance.

    Raises:
        InvalidValueError: weights, blocks or an imbalance that are none.
        UnknownNameError: there is no such method.
        UnsupportedError: the method needs a package that is not installed.
    """
    array = checked_weights(weights, "weights")
    checked_blocks(blocks, imbalance)
    if by not in METHODS:
        raise UnknownNameError(f"no method '{by}' for co-clusters", expected=", ".join(METHODS))
    return CoClusters(*METHODS[by](array, blocks, imbalance, seed))


def checked_weights(weights: ArrayLike, what: str) -> NDArray[np.float64]:
    """A copy of `weights` as float64, scaled to a largest weight of 1."""
    try:
        array = np.array(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(what, expected="numbers", got=str(error)) from error
    if array.ndim != 2 or not np.isfinite(array).all() or (array < 0).any():
        raise InvalidValueError(
            what,
            expected="finite numbers of at least 0 in two dimensions (outputs, inputs)",
            got=f"shape {array.shape}" if array.ndim != 2 else "a negative or non-finite one",
            remedy="pass magnitudes, scores of at least 0 or a mask",
        )
    largest = float(array.max(initial=0.0))
    return array / largest if largest > 0 else array


def checked_blocks(blocks: int, imbalance: float) -> None:
    """Refuse what is no number of blocks and no imbalance."""
    if isinstance(blocks, bool) or not isinstance(blocks, int | np.integer) or blocks < 1:
        raise InvalidValueError("blocks", expected="an integer of at least 1", got=repr(blocks))
    if isinstance(imbalance, bool) or not isinstance(imbalance, int | float) or not 0 <= imbalance < np.inf:
        raise InvalidValueError("imbalance", expected="a finite number of at least 0", got=repr(imbalance))


def _trimmed(mask: NDArray[np.bool_], rows: NDArray[np.bool_]) -> SubOperator | None:
    own = mask & rows[:, None]
    inputs, outputs = np.flatnonzero(own.any(axis=0)), np.flatnonzero(own.any(axis=1))
    return SubOperator(inputs, outputs) if outputs.size else None


_Labels = tuple[NDArray[np.int64], NDArray[np.int64]]


def _alternating(weights: NDArray[np.float64], blocks: int, imbalance: float, seed: int) -> _Labels:
    return balanced_blocks(weights, blocks, sides=(weights.shape[1],), imbalance=imbalance, seed=seed)


METHODS: Mapping[str, Callable[[NDArray[np.float64], int, float, int], _Labels]] = MappingProxyType(
    {"alternating": _alternating, "hypergraph": partitioned_graph, "spectral": spectral_blocks}
)
"""Name -> (weights, blocks, imbalance, seed) -> labels of the outputs and of the inputs."""
