"""What a mask drops is zeroed, reset to the opening balance or kept; nothing else is touched."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, MismatchError


@pytest.fixture
def run(tmp_path: Path) -> tuple[gt.Ledger, nn.Module, nn.Module, gt.Mask]:
    """(ledger, the model as it began, the trained one, a mask of half of it)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    began = deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    with gt.Recorder(model, tmp_path / "run.ledger.zarr", window_steps=2, entry_steps=4) as recorder:
        for _ in range(8):
            model(torch.randn(4, 6)).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    ledger = gt.Ledger.open(tmp_path / "run.ledger.zarr")
    return ledger, began, model, gt.select(gt.score(ledger, model), density=0.5)


@pytest.mark.parametrize("dropped", ["zero", "reset", "keep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dropped_become_what_the_arm_says(dropped: Any, dtype: torch.dtype, run: Any) -> None:
    ledger, began, trained, mask = run
    model = deepcopy(trained).to(dtype)
    before = deepcopy(model.state_dict())
    assert gt.apply_mask_(model, mask, dropped=dropped, ledger=ledger) is model
    for name, after in model.state_dict().items():
        kept = (
            torch.from_numpy(mask[name].copy()) if name in mask else torch.ones_like(after, dtype=torch.bool)
        )
        start = began.state_dict()[name].to(dtype)
        instead = {"zero": torch.zeros_like(after), "reset": start, "keep": before[name]}[dropped]
        assert torch.equal(after, torch.where(kept, before[name], instead))


def test_the_default_arm_is_zero(run: Any) -> None:
    _, _, trained, mask = run
    zeroed = gt.apply_mask_(deepcopy(trained), mask)
    assert all(
        (zeroed.get_parameter(name)[torch.from_numpy(~kept)] == 0).all() for name, kept in mask.items()
    )


def test_a_wrapped_model_is_reset_under_its_own_names(run: Any) -> None:
    ledger, began, trained, mask = run
    wrapped = nn.Module()
    wrapped._orig_mod = deepcopy(trained)  # as torch.compile does
    gt.apply_mask_(wrapped, mask, dropped="reset", ledger=ledger)
    kept = torch.from_numpy(mask["0.weight"].copy())
    expected = torch.where(kept, trained[0].weight, began[0].weight)
    assert torch.equal(dict(wrapped.named_parameters())["_orig_mod.0.weight"], expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dropped": "noise"}, "dropped: expected one of zero, reset, keep, got 'noise'"),
        ({"dropped": "reset"}, "dropped='reset': expected the run's ledger.*Pass ledger="),
    ],
)
def test_other_arms_are_refused(options: dict[str, Any], match: str, run: Any) -> None:
    with pytest.raises(InvalidValueError, match=match):
        gt.apply_mask_(run[2], run[3], **options)


def test_a_plan_only_zeroes(run: Any) -> None:
    ledger, _, trained, mask = run
    plan = gt.plan(trained, mask, tokens=8, refuse=False)
    with pytest.raises(InvalidValueError, match=r"dropped: expected 'zero' for a plan.*Apply the mask"):
        gt.apply_mask_(trained, plan, dropped="keep", ledger=ledger)


@pytest.mark.parametrize(
    ("shape", "got"), [((8, 6), "none of that name"), ((5, 5), "none of that name"), ((3, 9), r"\(3, 8\)")]
)
def test_a_ledger_of_another_run_changes_nothing(shape: tuple[int, int], got: str, run: Any) -> None:
    ledger = run[0]
    other = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(shape[1], shape[0]))
    name = "2.weight" if "8" in got else "extra"
    if name == "extra":
        other.register_parameter("extra", nn.Parameter(torch.ones(shape)))
    before = deepcopy(other.state_dict())
    mask = {"0.weight": np.zeros((8, 6), bool), name: np.zeros(shape, bool)}
    with pytest.raises(MismatchError, match=f"opening balance of '{name}'.*got {got}"):
        gt.apply_mask_(other, mask, dropped="reset", ledger=ledger)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
