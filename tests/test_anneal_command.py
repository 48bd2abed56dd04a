"""`gradtrace anneal` writes a mask within the budget and says what it spent, or writes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import gradtrace as gt
from gradtrace.cli import app

MODELS = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 6))

def validate(net):
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return -float((net(x) - x[:, :6]).square().mean())

def words(net):
    return "good"
"""
MODEL = ("--model", "factories:model", "--validate", "factories:validate")
RUN = ("run.ledger.zarr", "weights.safetensors", "mask.safetensors")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "factories.py").write_text(MODELS)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 6))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with gt.Recorder(net, tmp_path / RUN[0], below=("inputs", "gram"), below_every=1) as recorder:
        for _ in range(100):
            optimizer.zero_grad()
            x = torch.randn(64, 12)
            nn.functional.mse_loss(net(x), x[:, :6]).backward()  # type: ignore[no-untyped-call]
            recorder.observe(optimizer)
            optimizer.step()
    save_file(net.state_dict(), tmp_path / RUN[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return tmp_path


def test_the_mask_is_the_one_that_anneal_finds(home: Path) -> None:
    asked = (
        "anneal",
        *RUN,
        *MODEL,
        "--max-loss-increase",
        "0.1",
        "--granularity",
        "element",
        "--stages",
        "3",
    )
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    mask = gt.Mask.load(home / "mask.safetensors")
    assert 0.1 < mask.density < 0.8
    assert data["density"] == mask.density
    assert 0.05 < data["increase"] <= 0.1
    import factories  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    net = factories.model()
    net.load_state_dict(load_file(RUN[1]))
    dense = factories.validate(net)
    masked = factories.validate(gt.apply_mask_(net, mask))
    assert dense - masked == pytest.approx(data["increase"], abs=1e-6)
    assert f"{mask.density:.1%}" in CliRunner().invoke(app, list(asked)).output


def test_compensated_trials_get_further(home: Path) -> None:
    def density(*more: str) -> float:
        done = CliRunner().invoke(
            app, ["anneal", *RUN, *MODEL, "--max-loss-increase", "0.1", "--stages", "2", *more, "--json"]
        )
        assert done.exit_code == 0, done.output
        return float(json.loads(done.stdout)["density"])

    assert density("--compensate") < density()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*MODEL, "--max-loss-increase", "-1"), "max_loss_increase"),
        ((*MODEL, "--max-loss-increase", "0.1", "--stages", "0"), "stages"),
        ((*MODEL, "--max-loss-increase", "0.1", "--granularity", "stripes"), "granularity"),
        ((*MODEL[:2], "--validate", "factories:words", "--max-loss-increase", "0.1"), "number"),
        ((*MODEL[:2], "--validate", "factories", "--max-loss-increase", "0.1"), "--validate"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(home: Path, options: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["anneal", *RUN, *options])
    assert done.exit_code == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (home / "mask.safetensors").exists()
