"""The ledger of format 1.0 in data/, written once: every later version reads it, and goes on with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import UnknownNameError
from gradtrace.ledger.format import ACCUMULATORS, BELOW, KNOWN
from gradtrace.ledger.inputs import INPUT_MOMENTS
from gradtrace.ledger.reader import Ledger, ParameterRecord
from gradtrace.ledger.retention import checkpoints_of
from gradtrace.ledger.writer import LedgerWriter

DATA = Path(__file__).parent / "data"
KEPT = DATA / "format-1.0.ledger.zarr"
EXPECTED: dict[str, Any] = json.loads((DATA / "format-1.0.json").read_text(encoding="utf-8"))
SPANS = {name: tuple(map(int, name.split("-"))) for name in EXPECTED["spans"]}


def check_parameter(record: ParameterRecord, expected: dict[str, Any]) -> None:
    assert record.info.to_json() == expected["info"]
    np.testing.assert_array_equal(record.opening, np.asarray(expected["opening"], np.float32))
    assert {name for name in KNOWN if name not in INPUT_MOMENTS and record.offers(name)} == set(
        expected["totals"]
    )
    for name, total in expected["totals"].items():
        got = getattr(record, name)
        assert got.dtype == (np.float64 if KNOWN[name] == "float32" else np.int64)
        np.testing.assert_array_equal(got, np.asarray(total), err_msg=f"{record.name} {name}")
    assert {name: getattr(record, name) for name in expected["counts"]} == expected["counts"]
    watched = {"steps": record.watched_steps, "positions": record.positions, "samples": record.samples}
    assert watched == expected["watched"]
    assert record.windows == expected["windows"]
    # Step by step: how long a run is, is the reader's affair.
    updates = [(one.kind, dict(one.settings)) for one in record.history for _ in range(one.steps)]
    assert updates == [(kind, own) for kind, steps, own in expected["updates"] for _ in range(steps)]


def check(ledger: Ledger, expected: dict[str, Any]) -> None:
    assert set(ledger) == set(expected["parameters"])
    for name, own in expected["parameters"].items():
        check_parameter(ledger[name], own)
    assert set(ledger.inputs) == set(expected["inputs"])
    for module, own in expected["inputs"].items():
        inputs = ledger.inputs[module]
        assert (inputs.watched_steps, inputs.positions) == (own["steps"], own["positions"])
        np.testing.assert_array_equal(inputs.sum, own["input_sum"])
        np.testing.assert_array_equal(inputs.sumsq, own["input_sumsq"])
        if inputs.info.groups:
            np.testing.assert_array_equal(inputs.gram.ravel(), own["input_gram"])


def test_a_ledger_of_format_1_0_says_what_it_was_written_with() -> None:
    ledger = Ledger.open(KEPT)
    assert dict(ledger.accumulators) == EXPECTED["accumulators"]
    assert set(ledger.accumulators) == {*ACCUMULATORS, *BELOW}
    assert ledger.settings == EXPECTED["settings"]
    spans = [(one.begin, one.end, one.generation, one.layout, one.windows) for one in ledger.entries]
    sampled = [(one.sampling.stride, one.sampling.steps) for one in ledger.entries]
    assert [[*span, *own] for span, own in zip(spans, sampled, strict=True)] == EXPECTED["entries"]
    assert list(checkpoints_of(ledger.entries)) == EXPECTED["checkpoints"]
    assert ledger.entries[2].details["passed_cuts"] == 2
    assert ledger["head.weight"] is ledger["tokens.weight"]


@pytest.mark.parametrize(("begin", "end"), SPANS.values(), ids=SPANS)
def test_its_numbers_are_read_over_all_steps_and_over_some(begin: int, end: int) -> None:
    check(Ledger.open(KEPT).between(begin, end), EXPECTED["spans"][f"{begin}-{end}"])


def test_what_it_does_not_hold_is_said() -> None:
    with pytest.raises(UnknownNameError, match="a function uses it"):
        _ = Ledger.open(KEPT)["scale"].position_sumsq


def test_a_later_version_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / KEPT.name
    shutil.copytree(KEPT, path)
    with LedgerWriter.reopen(path) as writer:
        assert writer.end == 32
        number = writer.add_layout(writer.layouts[0], [np.zeros(writer.layouts[0].size(0), np.float32)])
        layout = writer.layouts[number]
        zeros = {name: np.zeros(layout.size(0, name), dtype) for name, dtype in writer.accumulators.items()}
        details = dict(writer.entries[0].details)
        writer.commit_entry(32, 40, layout=number, windows=2, arrays=zeros, details=details)
        writer.merge()
    ledger = Ledger.open(path)
    assert ledger.steps == 40
    for name, own in EXPECTED["spans"]["0-32"]["parameters"].items():
        for accumulator, total in own["totals"].items():
            np.testing.assert_array_equal(getattr(ledger[name], accumulator), total)
