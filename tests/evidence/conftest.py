"""A ledger in memory, with the attributes that evidence reads of a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


class MemoryLedger(Mapping[str, Any]):
    def __init__(self, records: Mapping[str, Any], accumulators: tuple[str, ...]) -> None:
        self._records = dict(records)
        self.accumulators = dict.fromkeys(accumulators, "float32")
        self.run_id, self.steps = "run-1", 7

    def __getitem__(self, name: str) -> Any:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def memory_ledger(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    history: tuple[Any, ...] = (),
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    module_class: str = "Linear",
    accumulators: tuple[str, ...] = ("grad_sum", "grad_sumsq", "window_sumsq", "events"),
    **arrays: Mapping[str, Any],
) -> MemoryLedger:
    """Records of these shapes; `opening={name: array}` and such replace the seeded random arrays."""
    generator = np.random.default_rng(11)
    records = {}
    for name, shape in shapes.items():
        record = {
            "grad_sumsq": generator.exponential(size=shape),
            "events": generator.integers(0, 8, shape),
            "opening": generator.normal(size=shape).astype(np.float32),
        } | {kind: values[name] for kind, values in arrays.items() if name in values}
        info = SimpleNamespace(
            name=name, shape=shape, aliases=(aliases or {}).get(name, ()), module_class=module_class
        )
        records[name] = SimpleNamespace(name=name, shape=shape, info=info, history=history, **record)
    return MemoryLedger(records, accumulators)


@pytest.fixture
def make_ledger() -> Callable[..., MemoryLedger]:
    return memory_ledger


@pytest.fixture
def update() -> Callable[..., Any]:
    def make(kind: str, steps: int, **settings: Any) -> Any:
        return SimpleNamespace(kind=kind, steps=steps, settings=settings)

    return make
