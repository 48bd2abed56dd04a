from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[float, dict[str, object]]:
    # In this process: lightning is slow to import, and a benchmark that is not exact raises here too.
    out = tmp_path_factory.mktemp("zero") / "zero_support.json"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    runpy.run_path(str(ROOT / "benchmarks/zero_support.py"))["main"](epochs=2, seed=0, out=out)
    torch.set_num_threads(before)
    return {run["weight_decay"]: run for run in json.loads(out.read_text())["runs"]}


@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_columns_without_an_event_are_the_blank_pixels(
    runs: dict[float, dict[str, object]], decay: float
) -> None:
    run = runs[decay]
    assert run["columns_without_events"] == run["blank_pixels"] == 124
    assert run["columns_without_events_but_not_blank"] == run["blank_pixels_with_events"] == 0


@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_every_further_weight_without_an_event_is_confirmed_by_the_replay(
    runs: dict[float, dict[str, object]], decay: float
) -> None:
    run = runs[decay]
    assert run["replay_is_bit_identical"]
    assert run["further_confirmed"] == run["further_never_supported"]
    assert int(str(run["further_never_supported"])) > 1000
    assert run["never_met_but_with_events"] == 0
