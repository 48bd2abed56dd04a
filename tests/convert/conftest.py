"""Plans without a clock: a cost table and a confirmation that are given, so that no timing decides a test."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from gradtrace.convert import planning
from gradtrace.structure.cost import CostTable

SIZES = (1, 4096)
FAST = CostTable(
    512, SIZES, SIZES, tuple(tuple(1e-9 * k * n for n in SIZES) for k in SIZES), per_sub_operator=1e-9
)

Masks = dict[str, NDArray[np.bool_]]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A device on which a product costs its weights, and every candidate measures `speed` times dense."""
    state = SimpleNamespace(table=FAST, speed=2.0, asked=[])

    def table(*key: object) -> CostTable:
        state.asked.append(key)
        found: CostTable = state.table
        return found

    monkeypatch.setattr(planning, "cost_table", table)
    monkeypatch.setattr(planning, "measure_beside", lambda linear, routed, tokens: (1.0, 1.0 / state.speed))
    return state


@pytest.fixture
def masks_of() -> Callable[..., Masks]:
    """Masks of every 2-d weight: a quarter of the columns and some rows dead, the rest kept at random."""

    def make(model: nn.Module, density: float = 0.3, seed: int = 0) -> Masks:
        generator = np.random.default_rng(seed)
        masks = {}
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                mask = generator.random(tuple(parameter.shape)) < density
                mask[:, ::4] = False
                mask[-1] = False
                masks[name] = mask
        return masks

    return make
