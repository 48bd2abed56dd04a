"""Timings are lower quartiles of interleaved calls, measured once; no test asks how long anything took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.convert import timing
from gradtrace.convert.fitting import structures_of, weights_of, wide_structures
from gradtrace.kernels.routed_linear_cpu import compiled_products
from gradtrace.structure.cost import CostTable
from gradtrace.structure.plan import LayerPlan
from gradtrace.structure.trimmed import trimmed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Neither what this machine has measured before is used, nor is anything of a test kept."""
    compiled_products()  # which is compiled once a process, into the folder that is usual
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timing._costs.cache_clear()
    yield
    timing._costs.cache_clear()


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def worker(self, seconds: Iterator[float], log: list[str], name: str) -> object:
        def work() -> None:
            log.append(name)
            self.now += next(seconds)

        return work


def test_all_are_called_in_turn_and_slow_moments_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), list[str]()
    workers = [
        clock.worker(iter([50.0, *[1.0, 9.0] * 4]), log, "a"),
        clock.worker(iter([50.0, *[30.0, 2.0] * 4]), log, "b"),
    ]
    assert timing.quartiles(workers, CPU, budget=0.0) == [1.0, 2.0]  # type: ignore[arg-type]
    assert log == ["a", "b"] * 9


def test_what_is_short_warms_up_before_each_call_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), list[str]()
    worker = clock.worker(iter([0.003, *[0.004, 0.001] * 8]), log, "a")
    assert timing.quartiles([worker], CPU, budget=0.0) == pytest.approx([0.001])  # type: ignore[list-item]
    assert len(log) == 1 + 2 * 8


def test_a_budget_buys_more_rounds_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), list[str]()
    timing.quartiles([clock.worker(iter([1.0] * 100), log, "a")], CPU, budget=9.5)  # type: ignore[list-item]
    assert len(log) == 10
    log.clear()
    timing.quartiles([clock.worker(iter([1.0] * 100), log, "a")], CPU, budget=1e9)  # type: ignore[list-item]
    assert len(log) == 26


def test_a_device_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def quartiles(functions: list[object], device: torch.device, budget: float) -> list[float]:
        calls.append(len(functions))
        return [1e-3] * len(functions)

    monkeypatch.setattr(timing, "quartiles", quartiles)
    first = timing.cost_table(CPU, torch.float32, 4)
    assert timing.cost_table(CPU, torch.float32, 4) is first
    assert len(calls) == 2
    timing.cost_table(CPU, torch.float32, 5)
    assert len(calls) == 4


@pytest.mark.parametrize("rated", [False, True])
def test_known_costs_are_recovered_from_what_is_measured(
    rated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose every cost is known: the table has to say the same again."""
    sizes = timing._SIZES
    gemm = tuple(tuple(1e-5 + 1e-10 * k * n for n in sizes) for k in sizes)
    weights = weights_of(8) if rated else ()
    rates = tuple(1e-10 * (number + 1) for number in range(len(weights)))
    true = CostTable(8, sizes, sizes, gemm, 3e-9, 5e-9, 2e-9, 7e-6, 4e-5, 1e-9, weights, rates)
    structures = structures_of(1024) + wide_structures(weights)
    monkeypatch.setattr(timing, "compiled_products", lambda: print if rated else None)

    def quartiles(functions: list[object], device: torch.device, budget: float) -> list[float]:
        if len(functions) == len(sizes) ** 2:
            return [true.predict_dense(k, n) for k in sizes[::-1] for n in sizes[::-1]]
        return [true.predict_sub_operators(parts, i, o) for i, o, parts in structures]

    monkeypatch.setattr(timing, "quartiles", quartiles)
    monkeypatch.setattr(timing, "_affordable", lambda *key: sizes)
    found = timing.cost_table(CPU, torch.float32, 8)
    for name in ("gather", "scatter", "fill", "turn", "per_sub_operator", "per_call", "rates"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-5), name
    assert found.weights == weights


def test_a_real_calibration_is_a_valid_table() -> None:
    table = timing.cost_table(CPU, torch.float32, 2)
    assert table.tokens == 2
    assert table.predict_dense(100, 100) > 0


def test_a_candidate_is_measured_with_its_own_weights() -> None:
    linear = nn.Linear(8, 4)
    mask = np.eye(4, 8, dtype=np.bool_)
    routed = gt.RoutedLinear.from_linear(
        linear, LayerPlan("trimmed", trimmed(mask), mask, 1.0, 1.0, None, "")
    )
    dense, seconds = timing.measure_beside(linear, routed, 3)
    assert dense > 0
    assert seconds > 0
    assert linear.weight.grad is None
