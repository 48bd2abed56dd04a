"""A smaller model, by the benchmark itself: what conversion needs at its peak, in models."""

from __future__ import annotations

import json
from pathlib import Path

import conversion
import pytest


def test_planning_and_converting_need_less_than_three_times_the_models_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "conversion.json"
    conversion.main(models="stack", densities="0.5", depth=4, width=1024, tokens=4, out=out)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["model_bytes"] > 100 << 20  # beside it, what the libraries take and give back is small
    assert row["layers"] == 8
    assert 1 < row["peak_in_models"] < 3
