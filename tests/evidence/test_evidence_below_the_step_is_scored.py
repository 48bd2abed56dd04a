"""What a recorder saw below the step is what `fisher` and `wanda` score, on a real ledger."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[gt.Ledger, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    path = tmp_path_factory.mktemp("below") / "run.ledger.zarr"
    below: Any = ("positions", "samples", "inputs")
    with gt.Recorder(model, path, window_steps=2, entry_steps=4, below=below, below_every=1) as recorder:
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(5, 4, 8)).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
    return gt.Ledger.open(path), model


@pytest.mark.parametrize("unit", ["position", "sample"])
def test_fisher_is_the_recorded_squares_times_the_squared_weights(unit: Any, run: Any) -> None:
    ledger, model = run
    scores = gt.score(ledger, model, "fisher", unit=unit, exponent=0.5)
    assert list(scores) == ["0.weight", "3.weight"]
    for name in scores:
        weight = model.get_parameter(name).detach().double().numpy()
        squares = getattr(ledger[name], f"{unit}_sumsq")
        assert (squares > 0).any()
        np.testing.assert_allclose(scores[name], weight**2 * np.sqrt(squares), rtol=1e-12)


def test_wanda_needs_no_calibration_data(run: Any) -> None:
    ledger, model = run
    scores = gt.score(ledger, model, "wanda")
    first, last = (model.get_parameter(name).detach().double().abs().numpy() for name in scores)
    np.testing.assert_allclose(scores["3.weight"], last * np.sqrt(ledger.inputs["3"].sumsq), rtol=1e-12)
    groups = np.sqrt(ledger.inputs["0"].sumsq).reshape(2, 1, 2, 3)
    expected = first.reshape(2, 3, 2, 3) * groups
    np.testing.assert_allclose(scores["0.weight"], expected.reshape(first.shape), rtol=1e-12)


def test_such_a_ledger_answers_every_criterion_but_movement(run: Any) -> None:
    listed = {one.name for one in gt.criteria(run[0])}
    assert {one.name for one in gt.criteria()} - listed <= {"movement"}
