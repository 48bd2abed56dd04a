"""Each benchmark, made tiny, runs to its end and writes its figures; how large they are decides nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import accumulate
import annealing_text
import byte_model
import compensated_criteria
import compensation
import end_to_end
import estimate
import language
import ledger_io
import overhead
import planted_blocks
import pytest
import reordering
import routed_linear
import torch
from recovered import comparison
from reordered import masks
from search.setting import Setting
from tasks.every_task import EVERY_TASK
from tasks.task import Quality

from gradtrace.errors import InvalidValueError


def test_overhead_times_watchers_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"BLOCK": 2, "LEAD": 2, "WIDTH": 16, "ROWS": 1, "COMMITS": 1, "PAIRS": 1}.items():
        monkeypatch.setattr(overhead, name, value)
    out = tmp_path / "results" / "overhead.json"
    overhead.main(steps=4, only="default,plain,below,budget", threads=0, out=out)
    figures = json.loads(out.read_text())
    rows = {row["watcher"]: row for row in figures["rows"]}
    assert list(rows) == ["none", "default", "plain", "below", "budget"]
    assert all(len(times["steps"]) == len(times["calls"]) == 4 for times in figures["seconds"].values())
    assert rows["none"]["in_calls"] is None
    assert all(rows[name]["in_calls"] > 0 for name in ("default", "plain"))
    assert [len(figures["seconds"][name]["commits"]) for name in rows] == [0, 1, 1, 1, 1]
    assert [len(figures["seconds"][name]["extra"]) for name in rows] == [0, 0, 0, 1, 1]
    assert [row["below_the_step"] is None for row in rows.values()] == [True, True, True, False, False]
    assert rows["below"]["watched_share"] == 1 / 16
    assert "cost of a step" in capsys.readouterr().out


def test_ledger_io_measures_committing_reading_and_merging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger_io.main(gigabytes=0.001, repeats=1, folder=tmp_path, out=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    pairs = {(row["what"], row["against"]) for row in figures["rows"]}
    assert ("commit", "write and fsync") in pairs
    ways = {"whole totals of 1 entry, warm", "walk over totals of 4 entries, warm"}
    peers = {"read", "read into one buffer", "read, check and convert"}
    assert {pair for pair in pairs if pair[0] in ways} == set(product(ways, peers))
    assert [one.name for one in tmp_path.iterdir()] == ["figures.json"]
    assert "Merging four entries" in capsys.readouterr().out


def test_criteria_are_ranked_by_what_is_left_after_compensation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(
        EVERY_TASK["byte-text-small"],
        model=lambda: byte_model.ByteModel(width=16, layers=1),
        validate=lambda net: Quality(*byte_model.held_out(net, windows=2)),
    )
    monkeypatch.setitem(EVERY_TASK, "byte-text-small", tiny)
    monkeypatch.setattr(language, "BATCH", 2)
    monkeypatch.setattr(compensated_criteria, "BATCHES", 1)
    settings = (Setting("magnitude"), Setting("wanda", scope="row"), Setting("fisher-step"))
    monkeypatch.setattr(compensated_criteria, "SETTINGS", settings)
    out = tmp_path / "figures.json"
    for _ in range(2):  # the second time nothing is trained or measured
        compensated_criteria.main(task=["byte-text-small"], seeds=1, steps=16, runs=tmp_path, out=out)
        found = json.loads(out.read_text())
        assert len(found["rows"]) == len(settings) * len(compensated_criteria.DENSITIES)
        assert {(one["density"], one["what"]) for one in found["ratios"]} == set(
            product(compensated_criteria.DENSITIES, ("masked", "compensated"))
        )
    assert "as masked -> as compensated" in capsys.readouterr().out


def test_compensation_is_measured_from_ledger_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = partial(byte_model.ByteModel, width=16, layers=1)
    monkeypatch.setattr(byte_model, "model", small)
    monkeypatch.setattr(language, "ByteModel", small)
    monkeypatch.setattr(language, "BATCH", 2)
    criteria: Any = (("magnitude", {}),)
    for name, value in {"BATCHES": 1, "WINDOWS": 2, "CRITERIA": criteria}.items():
        monkeypatch.setattr(compensation, name, value)
    out = tmp_path / "figures.json"
    for _ in range(2):  # the second time nothing is trained
        compensation.main(seeds=1, steps=20, runs=tmp_path, embedding_std=1.0, out=out)
        rows = json.loads(out.read_text())["rows"]
        assert [(row["granularity"], row["density"]) for row in rows] == list(compensation.SHAPES)
        assert all(0 < row["promised"] <= 1 for row in rows)
    assert "inputs of 64 rows at once, density 0.5" in capsys.readouterr().out
    with pytest.raises(InvalidValueError, match=r"embeddings that start at 0\.02, got 1"):
        compensation.main(seeds=1, steps=20, runs=tmp_path, out=out)


def test_routed_linear_times_layers_beside_their_peers_and_judges_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(routed_linear, "SHAPES", ((64, 256),))
    monkeypatch.setattr(routed_linear, "TOKENS", (1, 9))
    monkeypatch.setattr(routed_linear, "OPERATORS", 0)
    monkeypatch.setattr(routed_linear, "counts", lambda: (1,))
    out, picture = tmp_path / "results" / "figures.json", tmp_path / "picture.png"
    routed_linear.main(quick=False, seconds=0.01, out=out, picture=picture)
    figures = json.loads(out.read_text())
    rows = figures["rows"]
    assert len(rows) == 2 * 12
    assert all(row["counted"] and row["seconds"]["routed"]["median"] > 0 for row in rows)
    assert {"torch BSR", "torch CSR", "scipy CSR", "bmm", "grouped_mm"} == set(rows[6]["times"])
    assert picture.stat().st_size > 0
    said = capsys.readouterr().out
    assert "Speed over dense as a share of 1/density: median" in said
    assert said.count("x or more") == 1


def test_reordering_times_methods_and_judges_the_planner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(masks, "ELEMENTS", (0.1,))
    monkeypatch.setattr(masks, "LARGE", (96, 96))
    monkeypatch.setattr(reordering, "planted_masks", lambda seed: masks.planted_masks(seed, side=128))
    monkeypatch.setattr(reordering, "SHAPES", ((64, 96),))
    monkeypatch.setattr(reordering, "TOKENS", (9,))
    out = tmp_path / "figures.json"
    reordering.main(run=None, seconds=0.01, threads=1, out=out)
    figures = json.loads(out.read_text())
    sources = {row["source"] for row in figures["reordering"]}
    methods = {row["method"] for row in figures["reordering"]}
    assert sources == {"random", "planted"}
    assert {
        "natural 16",
        "greedy 16",
        "hypergraph 64",
        "block-triangular",
        "co-clusters, spectral",
    } <= methods
    assert all(row["saved"] == 0 for row in figures["reordering"] if row["method"] == row["natural"])
    assert len(figures["planning"]) == 9
    assert all(case["regret"] >= 0 for case in figures["planning"])
    assert all(case["chosen"] in case["seconds"] for case in figures["planning"])
    assert "Where the planner chose worst" in capsys.readouterr().out


def test_accumulate_is_held_against_what_the_memory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WIDTH": 16, "LAYERS": 1, "COPIED": 40_000}.items():
        monkeypatch.setattr(accumulate, name, value)
    accumulate.main(seconds=0.01, out=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"accumulate_", "plain loop", "foreach", "copy", "add"} <= set(figures["seconds"])
    assert figures["share"] > 0
    assert figures["dependencies"] == sum(torch.Size(shape).numel() for shape in accumulate.shapes())
    said = capsys.readouterr().out
    assert torch.cuda.is_available() or "Left out: a GPU" in said


def test_converted_models_are_timed_beside_dense_ones_once_they_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(end_to_end, "TOKENS", (9,))
    end_to_end.main(seconds=0.01, width=64, compiled=False, out=tmp_path / "figures.json")
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["MLP, 4 blocks", "MLP, 16 blocks", "transformer block"]
    assert all(row["speed_over_dense"]["converted"] > 0 for row in rows)
    assert ["fused" in row["seconds"] for row in rows] == [True, True, False]
    said = capsys.readouterr().out
    assert torch.cuda.is_available() or "Left out" in said


def test_annealed_text_is_judged_beside_a_narrow_model_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(annealing_text.BYTE_TEXT, model=lambda: byte_model.ByteModel(width=16, layers=1))
    for module in (annealing_text, comparison):
        monkeypatch.setattr(module, "BYTE_TEXT", tiny)
    monkeypatch.setattr(language, "BATCH", 2)
    monkeypatch.setattr(comparison, "TIMED", 0.01)
    monkeypatch.setattr(annealing_text, "SEQUENCES", (1,))
    out = tmp_path / "results" / "figures.json"
    for _ in range(2):  # the second time nothing is trained
        annealing_text.main(seeds=1, steps=16, recovery=20, lr=1e-3, density=0.5, runs=tmp_path, out=out)
        monkeypatch.setattr(comparison, "went_on", None)
    figures = json.loads(out.read_text())
    (row,) = figures["rows"]
    assert {name: row[name]["looks"][-1][0] for name in comparison.WAYS} == dict.fromkeys(comparison.WAYS, 20)
    assert row["from-scratch"]["looks"][-1][0] == 36
    assert figures["width"] < 16
    assert all(took > 0 for one in figures["seconds_a_pass"].values() for took in one.values())
    assert "recovery or a narrow model?" in capsys.readouterr().out


def test_planted_blocks_are_looked_for_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planted_blocks, "COUNTS", (2,))
    monkeypatch.setattr(planted_blocks, "SHARE", 0.0)
    out = tmp_path / "results" / "figures.json"
    for _ in range(2):  # the second time nothing is trained
        planted_blocks.main(seeds=1, steps=40, after=40, noise=0.3, runs=tmp_path / "runs", out=out)
        monkeypatch.setattr(planted_blocks, "fit", None)
    figures = json.loads(out.read_text())
    (row,) = figures["rows"]
    assert row["found_by"] in ("components", "coclusters")
    assert row["random"] > 0
    assert row["flops_share"] <= 1
    assert figures["summary"][0]["seeds"] == 1
    assert "Planted blocks" in capsys.readouterr().out


def test_estimates_are_set_beside_conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "DENSITIES", (0.5,))
    out = tmp_path / "estimate.json"
    estimate.main(seeds=1, epochs=1, tokens=16, runs=tmp_path / "runs", out=out, loaded=True)
    figures = json.loads(out.read_text())
    assert [(row["by"], row["density"]) for row in figures["rows"]] == [("support", 0.5), ("magnitude", 0.5)]
    assert figures["cases"] == 2
    assert figures["machine"]["loaded"] is True
