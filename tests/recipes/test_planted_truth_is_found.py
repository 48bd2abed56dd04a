"""Small versions of benchmarks/planted.py: absences are found, nulls keep their level, edges are no noise."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, average_precision_score

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def planted() -> Iterator[dict[str, Any]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(ROOT / "benchmarks/planted.py"))
    torch.set_num_threads(before)


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_every_planted_absence_is_found_without_a_false_alarm(
    optimizer: str, decay: float, planted: dict[str, Any], tmp_path: Path
) -> None:
    run = planted["sparse_categories"](tmp_path, 0, optimizer, decay, 256)
    assert run["planted"] > 1000
    for name in ("support", "explain"):
        assert run["absence"][name] == {"recall": 1.0, "fdp": 0.0}
    assert run["auprc"]["support"] == pytest.approx(1)


def test_on_the_null_tests_keep_their_level_and_the_naive_one_does_not(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    run = planted["null"](tmp_path, 0, 0.8, 640, 300)
    for name in ("departure", "drift", "sign"):
        assert all(share <= 1.2 * level for share, level in zip(run[name], (0.01, 0.05, 0.1), strict=True))
    assert run["naive t of steps"][1] > 0.1


def test_from_zero_confirmed_edges_are_the_teachers(planted: dict[str, Any], tmp_path: Path) -> None:
    run = planted["blocks"](tmp_path, 0, 0.05, "zero", 960)
    for name in ("departure local", "departure by", "drift local", "drift by", "sign e-bh"):
        assert run[name]["fdp"] <= 0.12
        assert run[name]["recall"] > 0.7
    assert run["auprc"]["drift"] > 0.9 > run["auprc"]["random"]


def test_what_walked_to_zero_from_torchs_start_has_a_drift_and_no_departure(
    planted: dict[str, Any], tmp_path: Path
) -> None:
    run = planted["blocks"](tmp_path, 0, 0.05, "default", 960)
    assert run["drift local"]["fdp"] > 0.5
    for name in ("departure local", "departure by"):
        assert run[name]["fdp"] <= 0.12
        assert run[name]["recall"] > 0.5


def test_means_tell_how_far_the_false_share_may_be_off(planted: dict[str, Any]) -> None:
    seeds = [{"recall": 1.0, "fdp": value} for value in (0.0, 0.1, 0.2)]
    mean = planted["mean_of"](seeds)
    assert mean["fdp"] == pytest.approx(0.1)
    assert mean["fdp_half_width"] == pytest.approx(4.302653 * 0.1 / 3**0.5)  # Student's, 2 degrees


def test_the_figures_are_those_of_scikit_learn(planted: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    truth, score = generator.random(500) < 0.3, generator.integers(0, 9, 500).astype(float)
    assert planted["auprc"](score, truth) == pytest.approx(average_precision_score(truth, score))
    left, right = generator.integers(0, 4, 60), generator.integers(0, 5, 60)
    assert planted["rand_index"](left, right) == pytest.approx(adjusted_rand_score(left, right))
