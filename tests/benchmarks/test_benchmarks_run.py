"""Each benchmark, made tiny, runs to its end and writes its figures; how large they are decides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import ledger_io
import overhead
import pytest


def test_overhead_times_watchers_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"BLOCK": 2, "LEAD": 2, "WIDTH": 16, "ROWS": 1, "COMMITS": 1}.items():
        monkeypatch.setattr(overhead, name, value)
    overhead.main(steps=4, only="default,plain", threads=0, out=tmp_path / "results" / "overhead.json")
    figures = json.loads((tmp_path / "results" / "overhead.json").read_text())
    assert [row["watcher"] for row in figures["rows"]] == ["none", "default", "plain"]
    assert all(row["step_seconds"] > 0 for row in figures["rows"])
    assert {name: len(times) for name, times in figures["seconds_of_a_step_by_round"].items()} == {
        "none": 2,
        "default": 2,
        "plain": 2,
    }
    assert len(figures["commit_seconds"]["default"]) == 1
    assert "cost of a step" in capsys.readouterr().out


def test_ledger_io_measures_committing_reading_and_merging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger_io.main(gigabytes=0.001, repeats=1, folder=tmp_path, out=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"commit", "totals of 1 entry, warm", "totals of 4 entries, warm"} <= {
        row["what"] for row in figures["rows"]
    }
    assert [one.name for one in tmp_path.iterdir()] == ["figures.json"]
    assert "Merging four entries" in capsys.readouterr().out
