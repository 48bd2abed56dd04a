"""Comparisons made by hand, and a small run that was really recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.comparison.contender import Contender
from gradtrace.comparison.cost import Cost
from gradtrace.comparison.layer_shape import LayerShape
from gradtrace.comparison.run import Run
from gradtrace.evidence.agreement import Agreement

KINDS = {"fisher": "ledger", "support": "ledger", "wanda": "statistic", "magnitude": "statistic"}


class Recorded(NamedTuple):
    ledger: gt.Ledger
    net: nn.Module
    validate: Callable[[nn.Module], float]


def a_run(seed: int, folder: Path) -> Recorded:
    """A trained 12-20-3 MLP whose first three inputs are never seen."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    path = folder / f"seed-{seed}.ledger.zarr"
    with gt.Recorder(net, path, window_steps=2, entry_steps=8) as recorder:
        for _ in range(24):
            x = torch.randn(16, 12)
            x[:, :3] = 0
            optimizer.zero_grad()
            (net(x) - x[:, 3:6]).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
    held_out = torch.randn(64, 12, generator=torch.Generator().manual_seed(7))
    held_out[:, :3] = 0
    return Recorded(gt.Ledger.open(path), net.eval(), lambda asked: -loss(asked, held_out))


def loss(net: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((net(x) - x[:, 3:6]).square().mean())


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Recorded]:
    folder = tmp_path_factory.mktemp("runs")
    return a_run(0, folder), a_run(1, folder)


def made(
    densities: tuple[float, ...],
    values: Mapping[str, Sequence[Sequence[float]]],
    shapes: Mapping[str, Sequence[LayerShape]] | None = None,
) -> gt.Comparison:
    """A comparison with these qualities, `values[contender][run][k]`; random and shuffled are given too."""
    contenders = tuple(Contender(name, KINDS.get(name, "control")) for name in values)
    names = tuple(values)
    ones = tuple((1.0,) * len(names) for _ in names)
    plain = (LayerShape(4, 2, 2, 2, 2, 2, 1, 2, 4, 1),) * len(densities)
    runs = tuple(
        Run(
            ledger=f"seed-{k}",
            run_id=f"run-{k}",
            steps=5,
            dense=1.0,
            quality={name: tuple(values[name][k]) for name in names},
            agreement=(Agreement(names, ones, ones),) * len(densities),
            layers={name: tuple({"w": shape} for shape in (shapes or {}).get(name, plain)) for name in names},
            ties=dict.fromkeys(names, (0.0,) * len(densities)),
            cost=dict.fromkeys(names, Cost(0.5, 2_000_000, ("events",))),
        )
        for k in range(len(next(iter(values.values()))))
    )
    return gt.Comparison(densities, "layer", "element", contenders, runs)


@pytest.fixture
def make() -> Callable[..., Any]:
    return made
