"""Blocks of a whole MLP: inputs, hidden units and outputs together, over both of its matrices.

The hidden units are the rows of one matrix (hidden, inputs + outputs), [up | down^T]: each reads some inputs
and is read by some outputs. Its blocks are those of the MLP. Where a gate and an up projection make the
hidden units (SwiGLU), give their union, or the sum of their weights, as `up`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradtrace.errors import MismatchError
from gradtrace.structure.balanced_blocks import balanced_blocks
from gradtrace.structure.coclusters import CoClusters, checked_blocks, checked_weights
from gradtrace.structure.components import components

__all__ = ["MlpBlocks", "mlp_coclusters", "mlp_components"]

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class MlpBlocks:
    """The block of each input, hidden unit and output, as int64 labels from 0 on; -1 is in no block."""

    inputs: NDArray[np.int64]
    hidden: NDArray[np.int64]
    outputs: NDArray[np.int64]

    @property
    def blocks(self) -> int:
        """One more than the largest label."""
        return 1 + max(int(part.max(initial=-1)) for part in (self.inputs, self.hidden, self.outputs))

    @property
    def up(self) -> CoClusters:
        """The blocks of the first matrix (hidden, inputs)."""
        return CoClusters(outputs=self.hidden, inputs=self.inputs)

    @property
    def down(self) -> CoClusters:
        """The blocks of the second matrix (outputs, hidden)."""
        return CoClusters(outputs=self.outputs, inputs=self.hidden)


def mlp_components(up_mask: NDArray[np.bool_], down_mask: NDArray[np.bool_]) -> MlpBlocks:
    """The exact blocks of an MLP that keeps `up_mask` (hidden, inputs) and `down_mask` (outputs, hidden).

    No kept dependency of either matrix lies between two blocks, and no block can be split. Blocks come in the
    order of their first hidden units. What no dependency touches is in no block; a block may lack inputs, or
    outputs.

    Raises:
        MismatchError: the two do not have the same hidden units.
    """
    joint = _joint(np.asarray(up_mask, np.bool_), np.asarray(down_mask, np.bool_))
    hidden, rest = (np.full(size, -1, np.int64) for size in joint.shape)
    for block, part in enumerate(components(joint)):
        hidden[part.outputs], rest[part.inputs] = block, block
    inputs = up_mask.shape[1]
    return MlpBlocks(rest[:inputs], hidden, rest[inputs:])


def mlp_coclusters(
    up_weights: ArrayLike, down_weights: ArrayLike, blocks: int, *, seed: int = 0, imbalance: float = 0.1
) -> MlpBlocks:
    """`blocks` blocks of an MLP that leave as little weight between them as is found, in both matrices.

    `up_weights` (hidden, inputs) and `down_weights` (outputs, hidden) are nonnegative and finite; each counts
    by its share of its own matrix. Inputs, hidden units and outputs are balanced each by themselves: no block
    holds more than (1 + imbalance) times its equal share. The same arguments give the same labels.

    Raises:
        MismatchError: the two do not have the same hidden units.
        InvalidValueError: weights, blocks or an imbalance that are none.
    """
    up, down = checked_weights(up_weights, "up weights"), checked_weights(down_weights, "down weights")
    checked_blocks(blocks, imbalance)
    joint = _joint(up / max(up.sum(), 1e-300), down / max(down.sum(), 1e-300))
    sides = (up.shape[1], down.shape[0])
    hidden, rest = balanced_blocks(joint, blocks, sides=sides, imbalance=imbalance, seed=seed)
    return MlpBlocks(rest[: sides[0]], hidden, rest[sides[0] :])


def _joint(up: NDArray[_T], down: NDArray[_T]) -> NDArray[_T]:
    if up.ndim != 2 or down.ndim != 2 or up.shape[0] != down.shape[1]:
        raise MismatchError(
            "the two matrices of an MLP do not fit together",
            expected="(hidden, inputs) and (outputs, hidden)",
            got=f"{up.shape} and {down.shape}",
        )
    return np.hstack([up, down.T])
