"""Evidence below the step on disk: what is written comes back, also by the document; the rest is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.ledger.format import (
    ACCUMULATORS,
    BELOW,
    KNOWN,
    ON_REQUEST,
    InputInfo,
    Layout,
    ParameterInfo,
    Piece,
)
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.watched import check_watched
from gradtrace.ledger.writer import LedgerWriter

PARAMETERS = (
    ParameterInfo(
        "a.weight", (3, 4), "float32", module="a", module_class="Linear", role="weight", orientation="out,in"
    ),
    ParameterInfo(
        "b.weight", (2,), "float32", module="b", module_class="LayerNorm", role="scale", orientation=""
    ),
)
INPUTS = (InputInfo("a", 4, 1), InputInfo("c", 6, 3), InputInfo("rows", 5, 0))
LAYOUT = Layout.whole(PARAMETERS, INPUTS)
WATCHED: dict[str, Any] = {
    "counts": {"steps": [2, 0], "positions": [20, 0], "samples": [6, 0]},
    "inputs": {"steps": [2, 2, 1], "positions": [20, 20, 7]},
    "fallen": {"1": "no use of it was seen"},
}


def arrays(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {
        name: random.integers(0, 100, LAYOUT.size(0, name)).astype(dtype) for name, dtype in KNOWN.items()
    }


def write(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    made = [arrays(1), arrays(2)]
    with LedgerWriter.create(path, settings={}, extra=[*BELOW, *ON_REQUEST]) as writer:
        number = writer.add_layout(LAYOUT, [np.zeros(LAYOUT.size(0), np.float32)])
        for place, one in enumerate(made):
            writer.commit_entry(
                4 * place,
                4 * place + 4,
                layout=number,
                windows=1,
                arrays=one,
                details={"watched": WATCHED},
            )
    return made


def test_input_moments_and_counts_come_back_by_module(tmp_path: Path) -> None:
    one, two = write(tmp_path / "run")
    ledger = Ledger.open(tmp_path / "run")
    assert list(ledger.inputs) == ["a", "c", "rows"]
    sums = one["input_sum"] + two["input_sum"]
    np.testing.assert_array_equal(ledger.inputs["c"].sum, sums[4:10])
    np.testing.assert_array_equal(ledger.inputs["rows"].sum, sums[10:])
    grams = one["input_gram"] + two["input_gram"]
    np.testing.assert_array_equal(ledger.inputs["c"].gram, grams[16:].reshape(3, 2, 2))
    assert (ledger.inputs["rows"].positions, ledger.inputs["rows"].watched_steps) == (14, 2)
    record = ledger["a.weight"]
    assert (record.watched_steps, record.positions, record.samples) == (4, 40, 12)
    support = one["position_support"].astype(np.int64) + two["position_support"]
    np.testing.assert_array_equal(record.position_support, support[:12].reshape(3, 4))
    first = ledger.between(0, 4)
    np.testing.assert_array_equal(first.inputs["a"].sumsq, one["input_sumsq"][:4])
    assert first["a.weight"].positions == 20


def test_a_module_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    write(tmp_path / "run")
    with pytest.raises(UnknownNameError, match="expected one of 'a', 'c', 'rows', got 'b'"):
        Ledger.open(tmp_path / "run").inputs["b"]


def test_the_document_is_enough_to_read_a_modules_inputs(tmp_path: Path) -> None:
    write(tmp_path / "run")
    commit = json.loads(next((tmp_path / "run" / "commits").glob("*-0000.json")).read_bytes())
    layout = json.loads((tmp_path / f"run/layouts/{commit['layout']:04d}/layout.json").read_bytes())
    place = [info["module"] for info in layout["inputs"]].index("c")
    before = layout["inputs"][:place]
    offset = sum(info["size"] for info in before)
    offset_gram = sum(
        (info["size"] // info["groups"]) ** 2 * info["groups"] for info in before if info["groups"]
    )
    span = f"{commit['begin']:012d}-{commit['end']:012d}-{commit['generation']:04d}"
    rank = tmp_path / f"run/entries/{span}/rank-0000"
    stored: Any = zarr.open_array(rank / "input_sum", mode="r")
    gram: Any = zarr.open_array(rank / "input_gram", mode="r")
    part = Ledger.open(tmp_path / "run").between(commit["begin"], commit["end"]).inputs["c"]
    np.testing.assert_array_equal(stored[offset : offset + 6], part.sum)
    np.testing.assert_array_equal(gram[offset_gram : offset_gram + 12], part.gram.reshape(-1))
    assert commit["details"]["watched"]["inputs"]["positions"][place] == part.positions


def test_only_rank_0_has_input_moments() -> None:
    pieces = (Piece(0, 0, (0, 0), (2, 4)), Piece(1, 8, (0,), (2,)))
    layout = Layout(PARAMETERS, (pieces, (Piece(0, 0, (2, 0), (1, 4)),)), INPUTS)
    assert [layout.size(rank, "input_gram") for rank in (0, 1)] == [16 + 12, 0]
    assert [layout.size(rank, "position_sumsq") for rank in (0, 1)] == [10, 4]
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize(
    "info",
    [
        {"module": "a", "size": -1, "groups": 1},
        {"module": "a", "size": 2**41, "groups": 1},
        {"module": "a", "size": 4, "groups": 3},
        {"module": "a", "size": 4, "groups": True},
        {"module": "a\x1b[0m", "size": 4, "groups": 1},
        {"module": 7, "size": 4, "groups": 1},
        {"size": 4, "groups": 1},
        {"module": "b", "size": 4, "groups": 1},
        {"module": "a", "size": 2**40, "groups": 1},
        "a",
    ],
    ids=repr,
)
def test_inputs_that_cannot_be_are_refused(info: Any) -> None:
    stored = json.loads(json.dumps(LAYOUT.to_json()))
    stored["inputs"] = [{"module": "b", "size": 1, "groups": 0}, info]
    with pytest.raises(InvalidValueError):
        Layout.from_json(stored)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("counts", "steps"), [1]),
        (("counts", "positions"), [1, -1]),
        (("counts", "samples"), None),
        (("inputs", "steps"), [1, 2]),
        (("inputs",), None),
        (("fallen",), {"2": "there is no such parameter"}),
        (("fallen",), {"-1": "there is no such parameter"}),
        (("fallen",), {"1": "\x1b[31m"}),
        (("fallen",), {"1": 3}),
    ],
    ids=repr,
)
def test_counts_of_watched_steps_that_do_not_fit_are_refused(where: tuple[str, ...], value: Any) -> None:
    check_watched(WATCHED, 2, 3)
    wrong = deepcopy(WATCHED)
    inner = wrong
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    with pytest.raises(InvalidValueError):
        check_watched(wrong, 2, 3)


def test_a_ledger_begun_without_has_none_and_one_begun_with_needs_all(tmp_path: Path) -> None:
    with LedgerWriter.create(tmp_path / "plain", settings={}) as writer:
        assert set(writer.accumulators) == set(ACCUMULATORS)
    with LedgerWriter.create(tmp_path / "run", settings={}, extra=["position_sumsq"]) as writer:
        assert set(writer.accumulators) - set(ACCUMULATORS) == {"position_sumsq"}
        number = writer.add_layout(LAYOUT, [np.zeros(LAYOUT.size(0), np.float32)])
        few = {name: array for name, array in arrays(1).items() if name in ACCUMULATORS}
        with pytest.raises(InvalidValueError, match="position_sumsq"):
            writer.commit_entry(0, 4, layout=number, windows=1, arrays=few, details={})
    with pytest.raises(InvalidValueError, match="extra"):
        LedgerWriter.create(tmp_path / "wrong", settings={}, extra=["grad_wait"])
