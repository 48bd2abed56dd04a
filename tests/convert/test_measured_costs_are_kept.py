"""A device is calibrated once a machine, not once a process; a file that is of no use is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtrace.convert.kept_costs import cost_key, kept_costs
from gradtrace.structure.cost import CostTable

CPU = torch.device("cpu")


def table(tokens: int = 8, call: float = 1e-5) -> CostTable:
    return CostTable(tokens, (1, 64), (1, 64), ((1e-6, 2e-6), (3e-6, 1 / 3)), per_call=call, gather=1e-9)


def key(**changed: Any) -> dict[str, Any]:
    return cost_key(CPU, torch.float32, 8, 1, compiled=True) | changed


def refused() -> CostTable:
    raise AssertionError("measured again")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gradtrace"


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    first = kept_costs(key(), table)
    again = kept_costs(key(), refused)
    assert again == first
    assert (again.table, again.path) == (table(), next(folder.glob("costs-*.json")))
    assert [path.name for path in folder.iterdir()] == [first.path.name if first.path else None]


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": 16},
        {"threads": 2},
        {"dtype": "bfloat16"},
        {"name": "another processor"},
        {"compiled": False},
        {"versions": {"gradtrace": "0.0.1", "torch": "2.0"}},
        {"code": "0" * 24},
    ],
    ids=lambda changed: str(next(iter(changed))),
)
def test_what_decides_a_measurement_is_told_apart(changed: dict[str, Any]) -> None:
    kept_costs(key(), table)
    other = table(changed.get("tokens", 8), call=3e-5)
    assert kept_costs(key(**changed), lambda: other).table == other
    assert kept_costs(key(), refused).table == table()


def edited(**changed: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | changed)


def edited_table(**changed: Any) -> Callable[[str], str]:
    return lambda text: edited(table=json.loads(text)["table"] | changed)(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: "\0\ud800",
        lambda text: "[1]",
        lambda text: text + " " * (1 << 20),
        edited(kind="a shopping list"),
        edited(format="2.0"),
        edited(key={}),
        edited(measured="yesterday"),
        edited(measured=None),
        edited(table=None),
        edited_table(tokens=9),
        edited_table(gather=-1.0),
        edited_table(per_call=float("nan")),
        edited_table(gemm=[[1.0]]),
        edited_table(rates="fast"),
        edited_table(surprise=1),
    ],
)
def test_a_damaged_file_is_measured_anew_and_replaced(damage: Callable[[str], str]) -> None:
    path = kept_costs(key(), table).path
    assert path is not None
    path.write_bytes(damage(path.read_text()).encode(errors="surrogatepass"))
    assert kept_costs(key(), lambda: table(call=7e-5)).table.per_call == 7e-5
    assert kept_costs(key(), refused).table.per_call == 7e-5


def test_a_folder_that_others_can_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert kept_costs(key(), table).path is None
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(folder: Path) -> None:
    folder.write_text("a file")
    found = kept_costs(key(), table)
    assert (found.table, found.path) == (table(), None)


def test_a_name_that_is_taken_by_a_folder_costs_nothing_but_time() -> None:
    path = kept_costs(key(), table).path
    assert path is not None
    path.unlink()
    path.mkdir()
    assert kept_costs(key(), table).path is None
