from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import case_contenders  # noqa: E402
import case_figures  # noqa: E402
import case_language  # noqa: E402
import case_machine  # noqa: E402
import case_minilm  # noqa: E402
import case_mnist  # noqa: E402
import minilm_classifier  # noqa: E402

import gradtrace as gt  # noqa: E402

MODELS = ["dense", "dense, equal cost", "magnitude", "wanda", "ours"]


def mnist(folder: Path) -> None:
    case_mnist.main(
        run=folder / "runs",
        seed=[1, 3],
        epochs=1,
        density=0.4,
        recovery=1,
        rounds=3,
        price=0.36,
        loaded=True,
        measure=True,
        out=folder / "figures.json",
    )


def test_a_study_compares_all_models_and_trains_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_figures, "peak_bytes", lambda *_: None)
    mnist(tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = {row["model"]: row for row in figures["rows"]}
    assert list(rows) == MODELS
    assert rows["dense"]["lost"] == 0
    for row in rows.values():
        assert row["quality"] == pytest.approx(np.mean(row["quality_of_seeds"]))
        assert row["cost_per_million"] == pytest.approx(0.36 / 3600 * 1e6 / row["items_per_second"])
        assert row["lost"] == pytest.approx(1 - row["quality"] / rows["dense"]["quality"])
    for name in MODELS[2:]:
        assert rows[name]["parameters"] < 0.5 * rows["dense"]["parameters"]
    (learned, _) = figures["learned"]
    assert learned["never_supported"] <= learned["not_confirmed"]
    assert learned["source"] == 0.7
    assert figures["estimate"]["got_quality"] <= 1

    monkeypatch.setattr(case_contenders, "recover", None)
    monkeypatch.setattr(case_mnist, "fit", None)
    mnist(tmp_path)


@pytest.mark.parametrize("steps", [0, 3])
def test_recovery_leaves_what_is_dropped_at_zero(steps: int) -> None:
    torch.manual_seed(0)
    net = case_mnist.fresh("equal cost")
    scores = gt.score(None, net, "magnitude")
    plan = gt.plan(net, gt.select(scores, density=0.3, granularity="rows"), tokens=8, refuse=False)
    gt.apply_mask_(net, plan)
    before = net.get_parameter("net.0.weight").detach().clone()
    case = type(
        "Case", (), {"batches": staticmethod(case_mnist.batches), "loss": staticmethod(case_mnist.loss)}
    )
    settings = SimpleNamespace(rate=1e-2, recovery=steps)
    case_contenders.recover(case, net, plan, settings, 0)  # type: ignore[arg-type]
    after = net.get_parameter("net.0.weight").detach()
    dropped = torch.from_numpy(~plan["net.0"].mask)
    assert bool((after[dropped] == 0).all())
    assert bool((after != before).any()) == (steps > 0)


def big(name: str) -> nn.Module:
    return nn.Linear(4096, 4096, bias=False)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says")
def test_peak_memory_is_that_of_the_model(tmp_path: Path) -> None:
    gt.save(big(""), tmp_path / "saved")
    peak = case_machine.peak_bytes(big, "", tmp_path / "saved", torch.zeros(1, 4096))
    assert peak is not None
    assert 64 << 20 < peak < 160 << 20


def test_a_language_model_learns_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_language, "SHAPES", {"dense": (32, 1), "equal cost": (16, 1)})
    monkeypatch.setattr(case_language, "WINDOWS", 8)
    monkeypatch.setattr(case_language, "BATCH", 2)
    net = case_language.train(2, 1, "dense", 0, tmp_path / "ledger.zarr").eval()
    assert gt.Ledger.open(tmp_path / "ledger.zarr").steps == 2
    judged = case_language.judged(net)
    assert judged.shape == (8,)
    assert np.isfinite(judged).all()
    assert net(case_language.example(3)).shape == (3, 128, 256)


def test_the_small_minilm_begins_as_the_large_one_does() -> None:
    large, small = (
        minilm_classifier.pretrained(case_minilm.fresh(20, name)) for name in ("dense", "equal cost")
    )
    ours = dict(small.encoder.named_parameters())
    assert len(small.encoder.encoder.layer) == case_minilm.EQUAL < len(large.encoder.encoder.layer)
    theirs = dict(large.encoder.named_parameters())
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())
