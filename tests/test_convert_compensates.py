"""`gradtrace convert --compensate` refits from the ledger and says what that did, or writes nothing."""

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
    return nn.Sequential(nn.Linear(12, 70), nn.ReLU(), nn.Linear(70, 6))

def validate(net):
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    return -float(net(x).detach().square().mean())
"""
OPTIONS = (
    "--model",
    "factories:model",
    "--density",
    "0.5",
    "--tokens",
    "8",
    "--no-refuse",
    "--by",
    "magnitude",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "factories.py").write_text(MODELS)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 70), nn.ReLU(), nn.Linear(70, 6))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for below in (("inputs", "gram"), ("inputs",)):
        path = tmp_path / f"{below[-1]}.ledger.zarr"
        with gt.Recorder(net, path, below=below, below_every=1) as recorder:
            for _ in range(4):
                optimizer.zero_grad()
                net(torch.randn(64, 12) @ torch.randn(12, 12)).square().mean().backward()
                recorder.observe(optimizer)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return tmp_path


def test_it_tells_what_compensation_did(home: Path) -> None:
    command = ["convert", "gram.ledger.zarr", "weights.safetensors", "out", *OPTIONS, "--compensate"]
    result = CliRunner().invoke(app, [*command, "--validate", "factories:validate", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    told = facts["compensation"]
    assert set(told["layers"]) == {"0", "2"}
    assert all(layer["compensated"] < layer["masked"] for layer in told["layers"].values())
    assert told["source"] == "the ledger's steps [0, 4)"
    assert list(facts["quality"]) == ["dense", "masked", "compensated", "converted"]
    assert facts["quality"]["converted"] == pytest.approx(facts["quality"]["compensated"], rel=1e-4)
    assert facts["quality"]["converted"] != pytest.approx(facts["quality"]["masked"], rel=1e-4)
    in_words = CliRunner().invoke(app, command)
    assert in_words.exit_code == 0
    assert "removed" in in_words.stdout


def test_a_ledger_without_gram_matrices_writes_nothing(home: Path) -> None:
    command = ["convert", "inputs.ledger.zarr", "weights.safetensors", "out", *OPTIONS, "--compensate"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert 'below=("inputs", "gram")' in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (home / "out").exists()
