from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from typer.testing import CliRunner

import gradtrace as gt
from gradtrace.cli import app
from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.estimation import dense_time
from gradtrace.estimation import predicted_plan as predicting
from gradtrace.estimation.assumptions import ERROR
from gradtrace.structure.cost import CostTable

# A product costs its weights in microseconds; sub-operators cost nothing beside theirs.
TABLE = CostTable(
    4, (1, 1024), (1, 1024), ((1e-6, 1024e-6), (1024e-6, 1024**2 * 1e-6)), weights=(1, 2), rates=(1e-6, 1e-6)
)
SPLIT = 96


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(61, 130), nn.ReLU(), nn.Linear(130, 70), nn.ReLU(), nn.Linear(70, 3))


def x() -> torch.Tensor:
    return torch.randn(SPLIT, 61, generator=torch.Generator().manual_seed(0))


def share(model: nn.Module) -> float:
    """How many classes of the dense model are told right."""
    with torch.inference_mode():
        return float((model(x()).argmax(-1) == net()(x()).argmax(-1)).double().mean())


@pytest.fixture(autouse=True)
def by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "cost_table", lambda device, dtype, tokens: TABLE)


@pytest.mark.parametrize("density", [0.7, 0.3])
def test_quality_is_that_of_the_converted_model(density: float) -> None:
    (level,) = gt.estimate(None, net(), densities=[density], validate=share).levels
    mask = gt.select(gt.score(None, net(), "magnitude"), density, granularity="rows")
    plan = predicting.predicted_plan(net(), mask, 512)
    assert level.converted == len(plan.converted) >= 2
    assert level.quality == share(gt.convert_(net(), plan))


def test_compensation_is_that_of_the_converted_model() -> None:
    data = [x()]
    (level,) = gt.estimate(None, net(), densities=[0.4], validate=share, inputs=data).levels
    plan = predicting.predicted_plan(
        net(), gt.select(gt.score(None, net(), "magnitude"), 0.4, granularity="rows"), 512
    )
    assert level.quality == share(gt.convert_(gt.compensate_(net(), plan, data), plan))


def test_time_and_removed_share_follow_the_cost_model() -> None:
    found = gt.estimate(None, net(), densities=[0.25, 0.5])
    sizes = 61 * 130 + 130 * 70 + 70 * 3
    assert found.dense.seconds == pytest.approx(sizes * 1e-6)
    assert found.dense.seconds_range == (found.dense.seconds,) * 2
    assert [one.density for one in found.levels] == [0.5, 0.25]
    for level in found.levels:
        plan = predicting.predicted_plan(
            net(), gt.select(gt.score(None, net(), "magnitude"), level.density, granularity="rows"), 512
        )
        run = sum(layer.weights for layer in plan.values())
        assert level.removed == pytest.approx(1 - run / sizes)
        assert level.seconds == pytest.approx(run * 1e-6)
        assert level.seconds_range == pytest.approx((run * 1e-6 * (1 - ERROR), run * 1e-6 * (1 + ERROR)))


def test_memory_is_that_of_the_converted_model() -> None:
    (level,) = gt.estimate(None, net(), densities=[0.5]).levels
    plan = predicting.predicted_plan(
        net(), gt.select(gt.score(None, net(), "magnitude"), 0.5, granularity="rows"), 512
    )
    held = [*(made := gt.convert_(net(), plan)).parameters(), *made.buffers()]
    assert level.bytes == pytest.approx(sum(one.nbytes for one in held), rel=0.02)


def test_what_is_no_product_stays_as_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_time, "quartiles", lambda calls, device, budget: [0.1, 0.06])
    alone = gt.estimate(None, net(), densities=[0.5])
    whole = gt.estimate(None, net(), densities=[0.5], example=x())
    assert whole.dense.seconds == 0.1
    left = alone.levels[0].seconds / alone.dense.seconds
    assert whole.levels[0].seconds == pytest.approx(0.04 + 0.06 * left)


def test_a_call_never_takes_less_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_time, "quartiles", lambda calls, device, budget: [1e-9, 2e-9])
    (level,) = gt.estimate(None, net(), densities=[0.5], example=x()).levels
    assert 0 < level.seconds < 1e-9


def test_the_yearly_cost_is_that_of_the_seconds_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = gt.Traffic(items_per_second=200, price_per_hour=3)
    found = gt.estimate(None, net(), densities=[0.5], tokens=4, traffic=traffic)
    (level,) = found.levels
    hours = 200 * (found.dense.seconds - level.seconds) / 4 * 365.25 * 24
    assert level.saved == pytest.approx(3 * hours)
    assert level.saved is not None
    assert level.saved_range is not None
    assert level.saved_range[0] < level.saved < level.saved_range[1]
    assert found.dense.saved == 0
    monkeypatch.setattr(dense_time, "quartiles", lambda calls, device, budget: [0.5, 0.4])
    timed = gt.estimate(None, net(), densities=[0.5], example=(x(),), traffic=traffic)
    assert timed.levels[0].saved == pytest.approx(
        3 * 200 * (0.5 - timed.levels[0].seconds) / SPLIT * 365.25 * 24
    )


def test_the_interval_of_a_share_is_wilsons() -> None:
    (level,) = gt.estimate(None, net(), densities=[0.3], validate=share, examples=SPLIT).levels
    assert level.quality is not None
    around = binomtest(round(level.quality * SPLIT), SPLIT).proportion_ci(method="wilson")
    assert level.quality_range == (around.low, around.high)


def test_a_quality_that_is_no_share_has_no_interval() -> None:
    (level,) = gt.estimate(None, net(), densities=[0.3], validate=lambda one: -2.5, examples=9).levels
    assert (level.quality, level.quality_range) == (-2.5, None)


@pytest.mark.parametrize(("max_loss", "best"), [(0.01, 0.7), (0.2, 0.5), (0.001, None)])
def test_the_best_is_the_fastest_within_the_loss(max_loss: float, best: float | None) -> None:
    falling = iter([-1.0, -1.005, -1.15, -1.5])  # dense first, then from the highest density
    found = gt.estimate(
        None, net(), densities=[0.3, 0.7, 0.5], validate=lambda one: next(falling), max_loss=max_loss
    )
    assert found.dense.quality == -1.0
    assert (None if found.best is None else found.best.density) == best


def test_without_validate_nothing_is_said_of_quality() -> None:
    found = gt.estimate(None, net(), densities=[0.5])
    assert found.best is None
    assert found.levels[0].quality is None
    assert any("Quality is not estimated" in line for line in found.assumptions)


def test_the_model_is_left_as_it_was() -> None:
    model = net().train()
    before = deepcopy(model.state_dict())
    gt.estimate(None, model, densities=[0.5], validate=share, inputs=[x()], example=x())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_ledger_ranks_by_its_criterion(tmp_path: Path) -> None:
    model, ledger = recorded(tmp_path)
    (level,) = gt.estimate(ledger, model, densities=[0.5], validate=share, by="support").levels
    mask = gt.select(gt.score(ledger, model, "support"), 0.5, granularity="rows")
    assert level.quality == share(
        gt.apply_mask_(deepcopy(model), predicting.predicted_plan(model, mask, 512))
    )


def recorded(folder: Path) -> tuple[nn.Module, gt.Ledger]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gt.Recorder(model, folder / "run.zarr", window_steps=2) as recorder:
        for _ in range(4):
            model(x()).square().mean().backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    return model.eval(), gt.Ledger.open(folder / "run.zarr")


FACTORIES = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(61, 130), nn.ReLU(), nn.Linear(130, 70), nn.ReLU(), nn.Linear(70, 3))

@torch.inference_mode()
def validate(net):
    return float(net(torch.ones(4, 61)).sum() * 0 + 0.75)

def batch():
    return torch.ones(4, 61)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model, _ = recorded(tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "estimate_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "estimate_factories", raising=False)
    return tmp_path


MODEL = ("--model", "estimate_factories:model")


@pytest.mark.usefixtures("home")
def test_the_command_prints_what_the_function_found() -> None:
    line = ["estimate", "weights.pt", "--ledger", "run.zarr", *MODEL, "--density", "0.5"]
    line += ["--validate", "estimate_factories:validate", "--examples", "4", "--traffic", "5", "--price", "2"]
    line += ["--example", "estimate_factories:batch"]
    told: dict[str, Any] = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert told["dense"]["quality"] == 0.75
    assert [one["density"] for one in told["levels"]] == [0.5]
    printed = CliRunner().invoke(app, line).stdout
    assert "Assumed:" in printed
    assert all(said in printed for said in told["assumptions"])


@pytest.mark.usefixtures("home")
def test_the_command_needs_no_model_beside_a_ledger() -> None:
    result = CliRunner().invoke(app, ["estimate", "weights.pt", "--ledger", "run.zarr", "--density", "0.5"])
    assert result.exit_code == 0, result.output
    assert "pass --validate" in result.stdout


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--model"),
        (("--ledger", "run.zarr", "--validate", "a:b"), "--model"),
        ((*MODEL, "--traffic", "5"), "--traffic and --price"),
        ((*MODEL, "--density", "2"), "densities"),
        ((*MODEL, "--example", "estimate_factories:nothing"), "--example"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_option(more: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["estimate", "weights.pt", *more])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"densities": []},
        {"densities": [0.0]},
        {"tokens": 0},
        {"examples": 0},
        {"max_loss": 1.5},
        {"validate": lambda one: float("nan")},
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError):
        gt.estimate(None, net(), **wrong)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), "many", True])
def test_traffic_is_checked(wrong: Any) -> None:
    with pytest.raises(InvalidValueError, match="items_per_second"):
        gt.Traffic(wrong, 1.0)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="linear layer"):
        gt.estimate(None, nn.Sequential(nn.Conv2d(2, 3, 3)))
    with pytest.raises(InvalidValueError):
        gt.estimate(None, {"a": np.ones((2, 2))})  # type: ignore[arg-type]
