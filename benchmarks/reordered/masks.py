"""The masks that are reordered: of a trained language model, random ones, and ones with something planted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

import gradtrace as gt

__all__ = ["LAYERS", "Named", "planted_masks", "random_masks", "trained_masks"]

LAYERS = ("blocks.1.q", "blocks.1.up", "blocks.1.down")
ELEMENTS = (0.5, 0.3, 0.1, 0.05)
GROUPED = (("rows", 0.3), ("tile", 0.3))
CRITERION = {"by": "fisher", "exponent": 0.75}
LARGE, LARGE_ELEMENTS = (1024, 1024), (0.1, 0.05)  # the partitioners take a minute for fuller ones


@dataclass(frozen=True, eq=False)
class Named:
    """A mask (outputs, inputs), where it is from and what it is."""

    source: str
    name: str
    mask: NDArray[np.bool_]


def trained_masks(net: nn.Module, ledger: gt.Ledger) -> Iterator[Named]:
    """Single weights at four densities, and groups of rows and tiles, of a middle block's layers."""
    scores = gt.score(ledger, net, **CRITERION)  # type: ignore[arg-type]
    own = {f"{name}.weight": scores[f"{name}.weight"] for name in LAYERS}
    for granularity, density in (*(("element", share) for share in ELEMENTS), *GROUPED):
        masks = gt.select(own, density=density, granularity=granularity)
        for name in LAYERS:
            yield Named("trained", f"{name} {granularity} {density:g}", masks[f"{name}.weight"])


def random_masks(shapes: list[tuple[int, int]], seed: int) -> Iterator[Named]:
    """Single weights at the same densities, each by itself, in the trained shapes and in a large one."""
    generator = np.random.default_rng(seed)
    for shape in [*shapes, LARGE]:
        for density in LARGE_ELEMENTS if shape == LARGE else ELEMENTS:
            mask = generator.random(shape) < density
            yield Named("random", f"{shape[1]} to {shape[0]} element {density:g}", mask)


def planted_masks(seed: int, side: int = 1024) -> Iterator[Named]:
    """What each method is there for, permuted, half full: blocks with a hub, alike rows, a triangle."""
    generator = np.random.default_rng(seed)
    half = generator.random((side, side)) < 0.5
    blocks = np.kron(np.eye(4, dtype=np.bool_), np.ones((side // 4, side // 4), np.bool_)) & half
    blocks[:4] = True
    supports = generator.random((side // 64, side)) < 0.2
    alike = np.repeat(supports, 64, axis=0) & (generator.random((side, side)) < 0.9)
    triangle = np.tril(half) | np.eye(side, dtype=np.bool_)
    for name, mask in (("4 blocks and a hub", blocks), ("alike rows", alike), ("triangle", triangle)):
        place = generator.permutation(side)
        across = place if name == "triangle" else generator.permutation(side)
        yield Named("planted", f"{name}, {side} to {side}", mask[place][:, across])
