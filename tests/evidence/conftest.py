"""A ledger in memory, with the attributes that evidence reads of a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

CORE = ("grad_sum", "grad_sumsq", "window_sumsq", "events", "votes", "window_votes")


class MemoryLedger(Mapping[str, Any]):
    def __init__(self, records: Mapping[str, Any], accumulators: tuple[str, ...]) -> None:
        self._records = dict(records)
        self.accumulators = dict.fromkeys(accumulators, "float32")
        self.run_id, self.steps = "run-1", 7
        self.inputs: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def memory_ledger(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    history: tuple[Any, ...] | None = None,
    windows: int = 5,
    steps: int = 7,
    orientation: str = "out,in",
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    module_class: str = "Linear",
    accumulators: tuple[str, ...] = CORE,
    **arrays: Mapping[str, Any],
) -> MemoryLedger:
    """Records of these shapes; `opening={name: array}` and such replace the seeded random arrays."""
    generator = np.random.default_rng(11)
    records = {}
    if history is None:
        history = (SimpleNamespace(kind="AdamW", steps=steps, settings={"lr": 0.1, "weight_decay": 0.0}),)
    for name, shape in shapes.items():
        record = {
            "grad_sumsq": generator.exponential(size=shape),
            "events": generator.integers(0, 8, shape),
            "opening": generator.normal(size=shape).astype(np.float32),
            "grad_sum": generator.normal(size=shape),
            "window_sumsq": generator.exponential(size=shape),
            "window_votes": np.zeros(shape, np.int64),
        } | {kind: values[name] for kind, values in arrays.items() if name in values}
        info = SimpleNamespace(
            name=name,
            shape=shape,
            aliases=(aliases or {}).get(name, ()),
            module_class=module_class,
            orientation=orientation,
            module="",
        )
        records[name] = SimpleNamespace(
            name=name, shape=shape, info=info, history=history, windows=windows, steps=steps, **record
        )
    return MemoryLedger(records, accumulators)


def gradient_ledger(
    gradients: np.ndarray[Any, Any], *, window_steps: int = 32, name: str = "w", **told: Any
) -> MemoryLedger:
    """A ledger of one parameter whose gradients are (steps, *shape); sums are float32, as on disk."""
    steps, *sides = gradients.shape
    starts = np.arange(0, steps, window_steps)
    windows = np.add.reduceat(gradients.astype(np.float64), starts, axis=0)
    sums = {
        "grad_sum": gradients.sum(axis=0),
        "grad_sumsq": (gradients**2).sum(axis=0),
        "window_sumsq": (windows**2).sum(axis=0),
        "events": (gradients != 0).sum(axis=0),
        "votes": np.sign(gradients).sum(axis=0).astype(np.int64),
        "window_votes": np.sign(windows).sum(axis=0).astype(np.int64),
    }
    arrays: dict[str, Any] = {
        kind: {name: total.astype(np.float32) if total.dtype.kind == "f" else total}
        for kind, total in sums.items()
    }
    return memory_ledger({name: tuple(sides)}, windows=len(starts), steps=steps, **told, **arrays)


@pytest.fixture
def make_gradient_ledger() -> Callable[..., MemoryLedger]:
    return gradient_ledger


@pytest.fixture
def make_ledger() -> Callable[..., MemoryLedger]:
    return memory_ledger


@pytest.fixture
def update() -> Callable[..., Any]:
    def make(kind: str, steps: int, **settings: Any) -> Any:
        return SimpleNamespace(kind=kind, steps=steps, settings=settings)

    return make
