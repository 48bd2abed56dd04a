"""From a ledger on disk to a mask: the reader's records are what the criteria expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import gradtrace as gt
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo
from gradtrace.ledger.writer import LedgerWriter

STEPS, LR, DECAY = 12, 0.01, 0.5


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, nn.Module, dict[str, np.ndarray]]:
    """A small run with AdamW in which input 2 is always zero, recorded by hand in two entries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 70), nn.ReLU(), nn.Linear(70, 3))
    named = dict(model.named_parameters())
    infos = tuple(
        ParameterInfo(
            name,
            tuple(p.shape),
            "float32",
            module=name[0],
            module_class="Linear",
            role=name[2:],
            orientation="out,in" if p.ndim == 2 else "",
        )
        for name, p in named.items()
    )
    opening = {name: p.detach().numpy().copy() for name, p in named.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    settings = {"lr": LR, "weight_decay": DECAY, "betas": [0.9, 0.999], "eps": 1e-8}
    path = tmp_path / "run.ledger.zarr"
    with LedgerWriter.create(path, settings={}) as writer:
        layout = writer.add_layout(
            Layout.whole(infos), [np.concatenate([w.ravel() for w in opening.values()])]
        )
        for begin, end in ((0, 5), (5, STEPS)):
            sums = {
                name: np.zeros(sum(w.size for w in opening.values()), kind)
                for name, kind in ACCUMULATORS.items()
            }
            for _ in range(begin, end):
                x = torch.randn(16, 5)
                x[:, 2] = 0
                optimizer.zero_grad()
                model(x).square().mean().backward()
                grad = np.concatenate([p.grad.numpy().ravel() for p in named.values() if p.grad is not None])
                sums["grad_sumsq"] += grad**2
                sums["events"] += (grad != 0).astype(np.uint32)
                optimizer.step()
            counts = {
                kind: [end - begin if kind == "steps" else 0] * len(infos)
                for kind in ("steps", "missing", "zero", "nonfinite", "skipped")
            }
            group = {
                "optimizer": 0,
                "kind": "AdamW",
                "parameters": list(range(len(infos))),
                "runs": [[end - begin, settings]],
            }
            details = {"counts": counts, "groups": [group]}
            writer.commit_entry(begin, end, layout=layout, windows=1, arrays=sums, details=details)
    return path, model, opening


def test_support_finds_the_dead_input_and_displacement_leaves_it_at_its_decayed_start(
    trained: tuple[Path, nn.Module, dict[str, np.ndarray]],
) -> None:
    path, model, _ = trained
    ledger = gt.Ledger.open(path)
    support = gt.score(ledger, model, by="support")["0.weight"]
    assert np.flatnonzero((support == 0).all(axis=0)).tolist() == [2]
    moved = gt.score(ledger, model, by="displacement")["0.weight"]
    assert moved[:, 2].max() < 1e-6
    assert np.delete(moved, 2, axis=1).mean() > 0.01


def test_the_default_scores_are_the_ledgers_sums_times_the_squared_weights(
    trained: tuple[Path, nn.Module, dict[str, np.ndarray]],
) -> None:
    path, model, _ = trained
    ledger = gt.Ledger.open(path)
    scores = gt.score(ledger, model)
    assert list(scores) == ["0.weight", "2.weight"]
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:
            moment = np.asarray(ledger[name].grad_sumsq, np.float64)
            np.testing.assert_allclose(scores[name], weight.double().numpy() ** 2 * moment**0.5)
    assert (scores.provenance["run_id"], scores.provenance["steps"]) == (ledger.run_id, STEPS)


def test_the_init_null_follows_the_recorded_decay_of_a_real_ledger(
    trained: tuple[Path, nn.Module, dict[str, np.ndarray]],
) -> None:
    path, _, opening = trained
    shrunk = {name: w * (1 - LR * DECAY) ** STEPS for name, w in opening.items()}
    scores = gt.score(gt.Ledger.open(path), shrunk, "init")
    assert scores.pvalues is not None
    assert stats.kstest(scores.pvalues["0.weight"].ravel(), "uniform").pvalue > 0.01


def test_scores_become_a_mask_that_survives_the_disk(
    trained: tuple[Path, nn.Module, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path, model, _ = trained
    mask = gt.select(gt.score(gt.Ledger.open(path), model), density=0.3)
    mask.save(tmp_path / "mask.safetensors")
    loaded = gt.Mask.load(tmp_path / "mask.safetensors")
    assert loaded == mask
    assert loaded.provenance == mask.provenance
    assert not loaded["0.weight"][:, 2].any()


def test_weights_of_another_model_are_refused(trained: tuple[Path, nn.Module, dict[str, np.ndarray]]) -> None:
    with pytest.raises(gt.GradtraceError, match="has another shape than in the ledger"):
        gt.score(gt.Ledger.open(trained[0]), nn.Sequential(nn.Linear(5, 71), nn.ReLU(), nn.Linear(71, 3)))
