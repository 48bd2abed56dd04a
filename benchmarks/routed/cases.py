"""The layers that are timed: shapes, and the structures that a dense layer of that shape is cut down to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradtrace.convert.routed_linear import RoutedLinear
from gradtrace.structure.plan import LayerPlan
from gradtrace.structure.sub_operator import SubOperator

__all__ = ["CASES", "SHAPES", "Case", "Layer", "layer_of"]

SHAPES = ((1024, 4096), (4096, 1024), (384, 1536))
"""(inputs, outputs)"""


@dataclass(frozen=True)
class Case:
    """Row groups of `size` outputs at `density`, or `size` exact blocks."""

    kind: str
    size: int
    density: float

    @property
    def name(self) -> str:
        if self.kind == "row groups":
            return f"groups of {self.size}, {self.density:g}"
        return f"{self.size} {self.kind}"

    @property
    def short(self) -> str:
        density = f"{self.density:g}".removeprefix("0")
        return f"g{self.size} {density}" if self.kind == "row groups" else f"{self.kind[0]}{self.size}"

    @property
    def in_grid(self) -> bool:
        """Whether the aims are about it; permuted blocks are those that no neighbouring layer could fold."""
        return self.kind != "permuted blocks"


CASES = (
    *(Case("row groups", size, density) for size in (64, 256) for density in (0.5, 0.3, 0.1)),
    *(Case(kind, count, 1 / count) for kind in ("blocks", "permuted blocks") for count in (4, 16, 64)),
)


@dataclass(frozen=True, eq=False)
class Layer:
    """A dense layer, what of it stays, and the same as sub-operators."""

    case: Case
    dense: nn.Linear
    mask: NDArray[np.bool_]
    parts: tuple[SubOperator, ...]
    routed: RoutedLinear


def layer_of(case: Case, inputs: int, outputs: int, seed: int = 0) -> Layer:
    """Draw a layer of this case."""
    torch.manual_seed(seed)
    dense = nn.Linear(inputs, outputs)
    parts = _parts(case, inputs, outputs, np.random.default_rng(seed))
    mask = np.zeros((outputs, inputs), dtype=np.bool_)
    for part in parts:
        mask[np.ix_(part.outputs, part.inputs)] = True
    choice = "row groups" if case.kind == "row groups" else "components"
    routed = RoutedLinear.from_linear(dense, LayerPlan(choice, parts, mask, 0.0, 0.0, None, "timed"))
    return Layer(case, dense, mask, parts, routed)


def _parts(case: Case, inputs: int, outputs: int, draw: np.random.Generator) -> tuple[SubOperator, ...]:
    if case.kind == "row groups":
        kept = round(case.density * inputs)
        return tuple(
            SubOperator(np.sort(draw.permutation(inputs)[:kept]), np.arange(begin, begin + case.size))
            for begin in range(0, outputs, case.size)
        )
    permuted = case.kind == "permuted blocks"
    sides = [draw.permutation(side) if permuted else np.arange(side) for side in (inputs, outputs)]
    halves = [np.split(side, case.size) for side in sides]
    return tuple(SubOperator(np.sort(i), np.sort(o)) for i, o in zip(*halves, strict=True))
