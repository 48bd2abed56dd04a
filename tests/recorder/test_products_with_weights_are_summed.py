from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import MismatchError, UnknownNameError
from gradtrace.kernels.accumulate_products import accumulate_products_
from gradtrace.recorder.budget import Budget
from gradtrace.recorder.sampling import drawn

STEPS = 24


def train(model: nn.Module, path: Path, **told: Any) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Record a training; return gradient and weight of each parameter in each step, in float64."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {n: [] for n, _ in model.named_parameters()}
    told = {"window_steps": 4, "entry_steps": 8, "movement": True} | told
    with gt.Recorder(model, path, **told) as recorder:
        for _ in range(STEPS):
            dtype = next(model.parameters()).dtype
            model(torch.randn(8, 7, dtype=dtype)).square().mean().backward()
            for name, one in model.named_parameters():
                assert one.grad is not None
                seen[name].append((one.grad.double().clone(), one.detach().double().clone()))
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    return seen


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_sum_is_that_of_float64(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small(dtype)
    seen = train(model, tmp_path / "run")
    ledger = gt.Ledger.open(tmp_path / "run")
    for name, pairs in seen.items():
        products = torch.stack([grad * weight for grad, weight in pairs])
        # A float32 sum of so many terms, each rounded once.
        slack = 4e-7 * float(products.abs().sum(dim=0).max())
        np.testing.assert_allclose(ledger[name].grad_weight, products.sum(dim=0), rtol=0, atol=slack)
    if dtype is torch.float32:
        scores = gt.score(ledger, model, by="movement")
        np.testing.assert_array_equal(scores["0.weight"], -ledger["0.weight"].grad_weight)


def test_sampled_steps_stand_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "_measured", lambda self: (1.0, 10.0, 100.0))  # overhead=0.09: a stride of 2
    seen = train(small(), tmp_path / "run", overhead=0.09)
    ledger = gt.Ledger.open(tmp_path / "run")
    strides = {
        step: entry.sampling.stride or 0 for entry in ledger.entries for step in range(entry.begin, entry.end)
    }
    assert set(strides.values()) == {2}
    weights = [strides[step] * drawn(step, strides[step]) for step in range(STEPS)]
    expected = sum(k * grad * weight for k, (grad, weight) in zip(weights, seen["0.weight"], strict=True))
    np.testing.assert_allclose(ledger["0.weight"].grad_weight, expected, rtol=0, atol=1e-6)


def test_what_is_skipped_or_not_finite_adds_nothing() -> None:
    out = torch.zeros(7)
    grad = torch.tensor([[1.0, torch.inf, torch.nan], [2.0, 3.0, -torch.inf]])
    weight = torch.tensor([[2.0, 0.0, 1.0], [torch.nan, -1.0, 1.0]])
    accumulate_products_(
        out, [grad], [weight], [1], scale=torch.tensor(0.5), skip=torch.tensor(0.0), weight=4
    )
    assert out.tolist() == [0.0, 4.0, 0.0, 0.0, 0.0, -6.0, 0.0]
    accumulate_products_(out, [grad], [weight], [1], skip=torch.tensor(1.0))
    accumulate_products_(out, [grad], [weight], [1], weight=0)
    assert out.tolist() == [0.0, 4.0, 0.0, 0.0, 0.0, -6.0, 0.0]
    with pytest.raises(MismatchError, match="gradient and weight"):
        accumulate_products_(out, [grad], [weight.T], [1])


def test_a_column_of_a_transposed_gradient_lies_where_its_weight_does() -> None:
    out = torch.zeros(12)
    grad, weight = torch.arange(12.0).reshape(3, 4).T, torch.arange(12.0).reshape(4, 3)
    accumulate_products_(out, [grad], [weight], [0])
    torch.testing.assert_close(out, (grad * weight).reshape(-1))


def test_without_them_movement_says_how_to_record_them(tmp_path: Path) -> None:
    model = small()
    train(model, tmp_path / "run", movement=False)
    ledger = gt.Ledger.open(tmp_path / "run")
    with pytest.raises(UnknownNameError, match="record it in the next run with movement=True"):
        gt.score(ledger, model, by="movement")
    with pytest.raises(UnknownNameError, match="Record with movement=True"):
        _ = ledger["0.weight"].grad_weight
