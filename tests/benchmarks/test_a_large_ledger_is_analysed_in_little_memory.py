"""Of a ledger `explain` holds a few bytes a dependency and what one parameter needs, never all its sums."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import analysis
import pytest

import gradtrace as gt

SIZE, WIDTH = 6_000_000, 512
MEGABYTES = 30  # all sums of the ledger, as float64, are 288; of its masks and reasons alone there are 12


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "WIDTH", WIDTH)
        yield folder, analysis.prepare(folder, SIZE)


@pytest.mark.parametrize("asked", [{}, {"test": "drift"}, {"scope": "layer", "method": "by"}])
def test_explain_streams(stored: tuple[Path, int], asked: dict[str, Any]) -> None:
    folder, size = stored
    assert SIZE <= size < 1.1 * SIZE
    gt.explain  # noqa: B018  # what it imports is not counted
    ledger = gt.Ledger.open(folder / "ledger")
    tracemalloc.start()
    try:
        found = gt.explain(ledger, folder / "weights.safetensors", 0.3, **asked)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES * 1e6
    assert found.mask.density == pytest.approx(0.3, abs=0.01)


def test_the_benchmark_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(analysis, "ACTIONS", {name: analysis.ACTIONS[name] for name in ("read", "analyse")})
    out = tmp_path / "results" / "analysis.json"
    analysis.main(parameters=10_000, rounds=1, folder=tmp_path, json_path=out)
    figures = json.loads(out.read_text())
    assert figures["dependencies"] >= 10_000
    assert [row["what"] for row in figures["rows"]] == ["read", "analyse"]
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 1e7 for row in figures["rows"])
    assert "times reading" in capsys.readouterr().out
    assert [one.name for one in tmp_path.iterdir()] == ["results"]
