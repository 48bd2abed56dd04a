"""Shares at every entry's end are what the ledger of the run so far would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.growth import growth, support_span
from gradtrace.evidence.span_shares import span_shares
from gradtrace.report.growth_plot import growth_plot
from gradtrace.report.learned_tables import growth_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[gt.Ledger, nn.Module]:
    """Input j of ten is zero before step 8 j; the task is learned slowly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    path = tmp_path_factory.mktemp("growth") / "run.ledger.zarr"
    with gt.Recorder(model, path, window_steps=4, entry_steps=16) as recorder:
        for step in range(90):
            x = torch.randn(8, 10)
            x[:, torch.arange(10) * 8 > step] = 0
            (model(x) - x[:, :3]).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    return gt.Ledger.open(path), model


def test_shares_are_those_of_the_run_so_far(run: Any) -> None:
    ledger, model = run
    found = growth(ledger, q=0.2)
    assert found.steps == (16, 32, 48, 64, 80, 90)
    assert list(found.sizes.items()) == [("0.weight", 120), ("2.weight", 36)]
    for k, step in enumerate(found.steps):
        so_far = ledger.between(0, step)
        confirmed = gt.confirm(gt.score(so_far, model, "drift"), "local", 0.2)
        for name in found.sizes:
            assert found.supported[name][k] == np.mean(so_far[name].events > 0)
            assert found.confirmed[name][k] == confirmed[name].mean()
    assert found.supported["0.weight"] == pytest.approx((0.2, 0.4, 0.6, 0.8, 1.0, 1.0))


def test_the_span_says_when_each_weight_was_supported(run: Any) -> None:
    first, last = support_span(run[0], "0.weight")
    ends = np.array([16, 16, 32, 32, 48, 48, 64, 64, 80, 80])
    np.testing.assert_array_equal(first, np.tile(ends, (12, 1)))
    np.testing.assert_array_equal(last, np.full((12, 10), 90))


def test_before_the_second_window_nothing_is_confirmed_and_never_is_minus_one(tmp_path: Path) -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gt.Recorder(model, tmp_path / "run.ledger.zarr", window_steps=4, entry_steps=4) as recorder:
        for _ in range(8):
            model(torch.tensor([[1.0, 2.0, 0.0]])).sum().backward()
            recorder.observe(optimizer)
            optimizer.zero_grad()
    ledger = gt.Ledger.open(tmp_path / "run.ledger.zarr")
    found = growth(ledger)
    assert found.confirmed["weight"] == (None, 0.0)
    supported, confirmed = found.together()
    assert supported == pytest.approx((2 / 3, 2 / 3))
    assert confirmed == (None, 0.0)
    assert support_span(ledger, "weight").first.tolist() == [[4, 4, -1]] * 2


def test_it_is_shown_as_json_table_and_picture(run: Any) -> None:
    found = growth(run[0])
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["together"]["supported"][-1] == 1.0
    table = growth_table(found)
    assert table.rows[-1][0] == "together"
    assert len(table.rows[0]) == len(table.columns) == 7
    assert growth_plot(found).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"q": 0}, InvalidValueError, "q: expected a number"),
        ({"names": []}, InvalidValueError, "names: expected at least one parameter"),
        ({"names": ["0.weigth"]}, UnknownNameError, "nearest is '0.weight'"),
    ],
)
def test_arguments_out_of_range_are_refused(
    options: dict[str, Any], error: type[Exception], match: str, run: Any
) -> None:
    with pytest.raises(error, match=match):
        growth(run[0], **options)


def test_a_ledger_without_window_sums_is_named(make_ledger: Any) -> None:
    with pytest.raises(UnknownNameError, match="growth needs the accumulator 'grad_sum'"):
        growth(make_ledger({"w": (2, 2)}, accumulators=("events",)))


def test_shares_by_first_and_last_step_add_up_to_what_was_supported(run: Any) -> None:
    spans = span_shares(run[0])
    span = support_span(run[0], "0.weight")
    assert spans.steps == (16, 32, 48, 64, 80, 90)
    for shares, ends in ((spans.first, span.first), (spans.last, span.last)):
        assert shares["0.weight"] == tuple(float(np.mean(ends == step)) for step in spans.steps)
    assert np.cumsum(spans.first["0.weight"]) == pytest.approx(growth(run[0]).supported["0.weight"])
    assert spans.never("0.weight") == spans.quiet("0.weight") == pytest.approx(0.0)
    assert json.loads(json.dumps(spans.to_json()))["sizes"] == {"0.weight": 120, "2.weight": 36}


def test_support_that_ended_is_told_from_support_that_goes_on(tmp_path: Path) -> None:
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gt.Recorder(model, tmp_path / "run.ledger.zarr", window_steps=2, entry_steps=2) as recorder:
        for step in range(6):
            model(torch.tensor([[1.0, step < 2, step >= 2, 0.0]])).sum().backward()
            recorder.observe(optimizer)
            optimizer.zero_grad()
    spans = span_shares(gt.Ledger.open(tmp_path / "run.ledger.zarr"))
    assert spans.first["weight"] == (0.5, 0.25, 0.0)
    assert spans.last["weight"] == (0.25, 0.0, 0.5)
    assert (spans.never("weight"), spans.quiet("weight")) == (0.25, 0.25)


def test_spans_need_events_and_a_parameter(make_ledger: Any, run: Any) -> None:
    with pytest.raises(UnknownNameError, match="spans need the accumulator 'events'"):
        span_shares(make_ledger({"w": (2, 2)}, accumulators=("grad_sum",)))
    with pytest.raises(InvalidValueError, match="at least one parameter"):
        span_shares(run[0], [])
