"""Weights that no gradient moved tell whether weights and ledger are of one run, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import MismatchError

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "sgd-decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=0.003, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def trained(seed: int, optimizer: str, path: Path, dtype: torch.dtype, threshold: float = 0.0) -> nn.Module:
    """Inputs 0-7 of 20 are always zero, so 8 x 16 weights never see a gradient."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    stepping = OPTIMIZERS[optimizer](model.parameters())
    with gt.Recorder(model, path, window_steps=5, entry_steps=10, threshold=threshold) as recorder:
        for _ in range(30):
            x = torch.randn(8, 20, dtype=dtype)
            x[:, :8] = 0
            (model(x) - x[:, 8:11]).square().mean().backward()
            recorder.observe(stepping)
            stepping.step()
            stepping.zero_grad()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_runs_own_weights_pass(optimizer: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = trained(0, optimizer, tmp_path / "run.ledger.zarr", dtype)
    ledger = gt.Ledger.open(tmp_path / "run.ledger.zarr")
    scores = gt.score(ledger, model)
    gt.apply_mask_(model, gt.select(scores, density=0.3))
    assert (gt.score(ledger, model)["0.weight"][:, :8] == 0).all()  # masked weights pass too


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-decay", "adam", "adamw"])
@pytest.mark.parametrize("by", ["fisher-step", "drift"])
def test_another_seeds_weights_are_refused(optimizer: str, by: str, tmp_path: Path) -> None:
    trained(0, optimizer, tmp_path / "run.ledger.zarr", torch.float32)
    other = trained(1, optimizer, tmp_path / "other.ledger.zarr", torch.float32)
    with pytest.raises(
        MismatchError,
        match=r"'0\.weight' are not those of the run .*its 128 weights without an event.*this run ended with",
    ):
        gt.score(gt.Ledger.open(tmp_path / "run.ledger.zarr"), other, by)


def test_where_events_have_a_threshold_nothing_can_be_told(tmp_path: Path) -> None:
    trained(0, "sgd", tmp_path / "run.ledger.zarr", torch.float32, threshold=1e-3)
    other = trained(1, "sgd", tmp_path / "other.ledger.zarr", torch.float32)
    gt.score(gt.Ledger.open(tmp_path / "run.ledger.zarr"), other)


def test_weights_trained_on_are_still_of_the_run(tmp_path: Path) -> None:
    model = trained(0, "adamw", tmp_path / "run.ledger.zarr", torch.float32)
    later = deepcopy(model)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(0.5)
    gt.score(gt.Ledger.open(tmp_path / "run.ledger.zarr"), later)


@pytest.mark.parametrize("half", ["first", "last"])
def test_what_moved_outside_of_a_part_of_the_steps_is_no_other_run(half: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))
    stepping = torch.optim.SGD(model.parameters(), lr=0.5)
    with gt.Recorder(model, tmp_path / "run.ledger.zarr", window_steps=5, entry_steps=10) as recorder:
        for step in range(20):
            x = torch.randn(8, 20)
            x[:, slice(0, 8) if step < 10 else slice(8, 20)] = 0  # each half has its own inputs
            (model(x) - x[:, 8:11]).square().mean().backward()
            recorder.observe(stepping)
            stepping.step()
            stepping.zero_grad()
    ledger = gt.Ledger.open(tmp_path / "run.ledger.zarr")
    part = ledger.between(end=10) if half == "first" else ledger.between(10)
    unseen = slice(0, 8) if half == "first" else slice(8, 20)
    assert (gt.score(part, model)["0.weight"][:, unseen] == 0).all()
