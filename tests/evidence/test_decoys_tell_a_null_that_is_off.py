from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import gradtrace as gt
from gradtrace.cli import app
from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.calibration import Calibration, calibration

STEPS, LENGTH, SIZE = 512, 16, 4000


def steady(noise: NDArray[Any]) -> NDArray[Any]:
    """A strong direction in every dependency."""
    return 1.0 + noise


def correlated(noise: NDArray[Any]) -> NDArray[Any]:
    """AR(1) at 0.8 from step to step."""
    for step in range(1, len(noise)):
        noise[step] = 0.8 * noise[step - 1] + 0.6 * noise[step]
    return noise


def shrinking(noise: NDArray[Any]) -> NDArray[Any]:
    """A hundred times smaller at the end than at the beginning."""
    return noise * np.geomspace(1, 0.01, len(noise))[:, None]


def alike(noise: NDArray[Any], windows: int) -> NDArray[Any]:
    """In so many windows only, and there alike in every step: what Student's distribution does not expect."""
    window = np.arange(len(noise)) // LENGTH
    return np.where((window < windows)[:, None], np.sign(noise[window * LENGTH]), 0.0)


def three(noise: NDArray[Any]) -> NDArray[Any]:
    return alike(noise, 3)


def twelve(noise: NDArray[Any]) -> NDArray[Any]:
    return alike(noise, 12)


def recorded(gradients: Callable[[NDArray[Any]], NDArray[Any]], path: Path, **told: Any) -> gt.Ledger:
    model = nn.Linear(40, SIZE // 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = np.random.default_rng(3).normal(size=(STEPS, SIZE))
    told = {"window_steps": LENGTH, "entry_steps": 128, "decoys": True} | told
    with gt.Recorder(model, path, **told) as recorder:
        for values in gradients(noise):
            model.weight.grad = torch.tensor(values, dtype=torch.float32).reshape(-1, 40)
            recorder.observe(optimizer)
    save_file(model.state_dict(), path.parent / "weights.safetensors")
    return gt.Ledger.open(path)


@pytest.mark.parametrize("gradients", [steady, correlated, shrinking, three])
def test_decoys_keep_the_level_whatever_was_learned(
    gradients: Callable[[NDArray[Any]], NDArray[Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = recorded(gradients, tmp_path / "run")
    found = calibration(ledger)
    assert found.decoys == {"weight": SIZE}
    # Five standard deviations of a binomial share above 1.2 alpha.
    for alpha, share in zip(found.alphas, found.shares("weight"), strict=True):
        assert share < 1.2 * alpha + 5 * np.sqrt(alpha / SIZE)
    assert found.off == ()
    assert "keep their level" in found.findings[0]
    weights = {"weight": np.ones((SIZE // 40, 40))}
    with caplog.at_level(logging.WARNING):
        learned = gt.confirm(gt.score(ledger, weights, by="drift"), "bh", 0.05)["weight"].mean()
    assert caplog.text == ""
    assert learned > 0.99 if gradients is steady else learned < 0.01


def test_a_null_that_is_off_is_warned_of_with_expected_got_and_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = recorded(twelve, tmp_path / "run")
    found = calibration(ledger)
    ((name, alpha, share),) = found.off
    assert (name, alpha) == ("weight", 0.1)
    assert share == pytest.approx(0.146, abs=0.03)  # at least nine of twelve signs agree
    scores = gt.score(ledger, {"weight": np.ones((SIZE // 40, 40))}, by="drift")
    with caplog.at_level(logging.WARNING):
        gt.confirm(scores, "local")
    assert "weight: the null of drift is off: expected p < 0.1 for at most 12.0%" in caplog.text
    assert f"got {share:.1%}" in caplog.text
    assert "or record with a smaller window_steps" in caplog.text
    assert scores.provenance["calibration"] == json.loads(json.dumps(found.to_json()))


def test_compare_says_so(tmp_path: Path) -> None:
    recorded(twelve, tmp_path / "run")
    asked = ["compare", str(tmp_path / "run"), str(tmp_path / "weights.safetensors"), "--by", "drift"]
    asked += ["--by", "support", "--density", "0.5"]
    data = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert [one["parameter"] for one in data["calibration"][0]["off"]] == ["weight"]
    assert "the null of drift is off" in CliRunner().invoke(app, asked).stdout


def test_a_share_is_off_only_by_more_than_chance() -> None:
    few, many = {"w": 100}, {"w": 100_000}
    assert Calibration((0.1,), few, {"w": (20,)}).off == ()
    assert Calibration((0.1,), many, {"w": (12_000,)}).off == ()
    assert Calibration((0.1,), many, {"w": (13_000,)}).off == (("w", 0.1, 0.13),)


def test_what_was_never_supported_has_no_decoy(tmp_path: Path) -> None:
    def half(noise: NDArray[Any]) -> NDArray[Any]:
        return noise * (np.arange(SIZE) < 1000)

    assert calibration(recorded(half, tmp_path / "run")).decoys == {"weight": 1000}


def test_a_ledger_without_decoys_or_windows_is_refused(tmp_path: Path) -> None:
    plain = recorded(steady, tmp_path / "plain", decoys=False)
    with pytest.raises(UnknownNameError, match=r"record the next run with decoys=True|Record the next run"):
        calibration(plain)
    assert "calibration" not in gt.score(plain, {"weight": np.ones((SIZE // 40, 40))}, by="drift").provenance
    one = recorded(lambda noise: noise[:10], tmp_path / "one")
    with pytest.raises(InvalidValueError, match="windows recorded of 'weight': expected at least 2, got 1"):
        calibration(one, ["weight"])
    with pytest.raises(InvalidValueError, match="alphas"):
        calibration(one, alphas=(0.0,))
