from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from search.measuring import DENSE, DENSITIES, measured
from search.setting import Setting
from tasks.every_task import EVERY_TASK
from tasks.in_memory import shuffled_batches
from tasks.task import pruned_names
from tasks.training import read_run, trained

import gradtrace as gt
from gradtrace.errors import InvalidValueError, UnknownNameError

ROOT = Path(__file__).resolve().parents[2]
QUICK = EVERY_TASK["sparse-groups"]
SETTINGS = [
    Setting("fisher-step", (("exponent", 0.5),), "first"),
    Setting("wanda", (("inputs", "calibrated"),), scope="row"),
    Setting("no-such-criterion"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "seed-0"
    trained(QUICK, 0, folder, 24, lambda: None)
    return folder


def test_a_training_leaves_halves_that_can_be_read(run: Path) -> None:
    net, ledger = read_run(QUICK, run)
    assert list(ledger) == pruned_names(net) == ["0.weight", "2.weight", "4.weight"]
    assert ledger.steps == 24
    assert ledger.between(end=12).steps == 12


def test_a_training_is_not_repeated(run: Path) -> None:
    before = (run / "weights.safetensors").stat().st_mtime_ns
    trained(QUICK, 0, run, 24, pytest.fail)
    assert (run / "weights.safetensors").stat().st_mtime_ns == before


def test_a_training_with_other_settings_is_not_taken_for_it(run: Path) -> None:
    with pytest.raises(InvalidValueError, match="24"):
        trained(QUICK, 0, run, 25, lambda: None)


def test_an_interrupted_measurement_goes_on_where_it_stopped(run: Path) -> None:
    path = run / "measures.jsonl"
    whole, left_out = measured(QUICK, 0, run, SETTINGS, lambda: None)
    assert list(left_out) == ["no-such-criterion"]
    assert len(whole) == 1 + 2 * len(DENSITIES)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20])
    again, _ = measured(QUICK, 0, run, SETTINGS, lambda: None)
    assert again == whole
    assert measured(QUICK, 0, run, SETTINGS, lambda: None)[0] == whole


def test_a_measure_is_that_of_the_masked_model(run: Path) -> None:
    net, ledger = read_run(QUICK, run)
    found, _ = measured(QUICK, 0, run, SETTINGS, lambda: None)
    assert next(one for one in found if one.setting == DENSE).loss == QUICK.validate(net).loss
    scores = gt.score(ledger.between(end=12), net, by="fisher-step", exponent=0.5)
    gt.apply_mask_(net, gt.select(scores, density=0.3))
    (asked,) = (one for one in found if (one.setting, one.density) == (SETTINGS[0].label, 0.3))
    assert asked.loss == QUICK.validate(net).loss


def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks/criteria_search.py"))


def test_unseen_tasks_are_not_searched_on() -> None:
    names = script()
    with pytest.raises(InvalidValueError, match="--judge"):
        names["chosen_tasks"](["function-home"], "")
    with pytest.raises(UnknownNameError, match="image-mlp"):
        names["chosen_tasks"](["imagemlp"], "")
    assert [task.name for task in names["chosen_tasks"]([], "")] == [
        name for name, task in EVERY_TASK.items() if task.searched
    ]
    assert len(names["chosen_tasks"]([], "displacement")) == len(EVERY_TASK)


@pytest.mark.parametrize("asked", [["fisher-step exponent=0.5 last"], ["drift", "fisher-step exponent=1.0"]])
def test_the_settings_named_are_measured_beside_every_statistic(asked: list[str]) -> None:
    names = script()
    chosen = names["chosen_settings"](asked)
    assert sorted(one.label for one in chosen if one.kind == "ledger") == asked
    rest = [one for one in names["chosen_settings"]([]) if one.kind != "ledger"]
    assert [one for one in chosen if one.kind != "ledger"] == rest
    with pytest.raises(UnknownNameError):
        names["chosen_settings"](["fisher-stap"])


def test_a_search_writes_its_table_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "search.json"
    script()["main"](
        task=["sparse-groups"], seeds=1, steps=8, judge="displacement", runs=tmp_path / "runs", out=out
    )
    said = capsys.readouterr().out
    assert "sparse-groups: loss increase over dense" in said
    assert "displacement, judged" in said
    result = json.loads(out.read_text())
    assert {row["setting"] for row in result["records"]} >= {"displacement", "magnitude", "random"}
    assert {row["task"] for row in result["cells"]} == {"sparse-groups"}


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (4, 4), (7, 2)])
def test_batches_are_whole_and_the_same_for_a_seed(rows: int, size: int) -> None:
    arrays = (torch.arange(rows),)
    batches = [batch[0] for batch in shuffled_batches(arrays, 0, 9, size)]
    assert all(len(set(batch.tolist())) == size for batch in batches)
    again = [batch[0] for batch in shuffled_batches(arrays, 0, 9, size)]
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    a_pass = torch.cat(batches[: rows // size]).tolist()
    assert len(set(a_pass)) == len(a_pass)
