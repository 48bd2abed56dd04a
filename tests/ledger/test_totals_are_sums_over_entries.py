from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import CorruptLedgerError, MismatchError, UnknownNameError
from gradtrace.ledger import array_format, array_reader
from gradtrace.ledger.details import Update
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo, Piece
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.reader import Ledger

Make = Callable[..., ParameterInfo]


def counts(parameters: int, steps: int) -> dict[str, list[int]]:
    names = ("steps", "missing", "zero", "nonfinite", "skipped")
    return {
        name: [steps * 10 + place + index for index in range(parameters)] for place, name in enumerate(names)
    }


def test_every_accumulator_is_summed_over_the_entries_in_the_parameters_shape(
    book: Any, pair: Layout
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 2, 8):
            book.commit(writer, number, steps)
    ledger = book.check()
    assert (ledger.steps, len(ledger.entries)) == (14, 3)
    record = ledger["net.0.weight"]
    assert record.shape == (3, 5)
    assert record.windows == 7
    assert {record.grad_sum.dtype, record.grad_sumsq.dtype, record.window_sumsq.dtype} == {
        np.dtype("float64")
    }
    assert {record.events.dtype, record.votes.dtype, record.window_votes.dtype} == {np.dtype("int64")}
    assert record.opening.dtype == np.float32
    np.testing.assert_array_equal(record.opening.ravel(), book.openings[number][0][:15])


def test_the_arrays_are_the_callers_own(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    record = Ledger.open(book.path)["net.0.weight"]
    record.grad_sum[:] = 0
    record.opening[:] = 0
    np.testing.assert_array_equal(record.grad_sum, book.total("net.0.weight", "grad_sum"))
    assert record.opening.any()


@pytest.mark.parametrize("elements", [1, 2, 5, 7, 17, 18, 19])
def test_chunk_borders_may_lie_anywhere(
    book: Any, pair: Layout, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", elements)
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        book.commit(writer, number)
    ledger = book.check()
    np.testing.assert_array_equal(ledger["net.0.bias"].opening, book.openings[number][0][15:])


def test_boxes_on_several_ranks_come_together_as_one_tensor(book: Any, parameter_of: Make) -> None:
    rows = (
        Piece(0, 0, (0, 0), (2, 5)),
        Piece(1, 10, (0,), (3,)),
    )
    corner = (Piece(2, 0, (), ()), Piece(0, 4, (2, 3), (2, 2)))  # a gap of three before the second piece
    rest = (Piece(0, 0, (2, 0), (2, 3)),)
    layout = Layout(
        (parameter_of("w", 4, 5), parameter_of("b", 3), parameter_of("scale"), parameter_of("none", 0, 4)),
        (rows, corner, rest, ()),
    )
    with book.create() as writer:
        number = book.add(writer, layout)
        book.commit(writer, number)
        book.commit(writer, number)
    ledger = book.check()
    assert ledger["scale"].events.shape == ()
    assert ledger["none"].events.shape == (0, 4)
    assert ledger["w"].opening[2, 3] == book.openings[number][1][4]


def test_a_parameter_may_join_later_and_opens_with_its_first_layout(
    book: Any, pair: Layout, parameter_of: Make
) -> None:
    wider = Layout.whole([parameter_of("late", 2, 2), *pair.parameters])
    with book.create() as writer:
        first = book.add(writer, pair)
        book.commit(writer, first)
        second = book.add(writer, wider)
        book.commit(writer, second)
        book.commit(writer, second)
    ledger = book.check()
    assert list(ledger) == ["net.0.weight", "net.0.bias", "late"]
    np.testing.assert_array_equal(ledger["net.0.weight"].opening.ravel(), book.openings[first][0][:15])
    np.testing.assert_array_equal(ledger["late"].opening.ravel(), book.openings[second][0][:4])
    assert ledger["late"].windows == 4


def test_a_run_in_several_lives_has_the_totals_of_an_unbroken_one_to_the_last_bit(
    book_at: Callable[..., Any], pair: Layout, tmp_path: Path
) -> None:
    size = pair.size(0)
    random = np.random.default_rng(5)
    # Of such different sizes that adding them in another order rounds to another float64.
    sums = [random.normal(size=size) * 10.0 ** random.integers(-9, 9, size) for _ in range(9)]
    ledgers = []
    for lives in (1, 3):
        one = book_at(tmp_path / f"{lives}-lives")
        with one.create() as writer:
            for index, values in enumerate(sums):
                if index % (len(sums) // lives) == 0:
                    number = one.add(writer, pair)
                arrays = {name: np.zeros(size, dtype) for name, dtype in ACCUMULATORS.items()}
                arrays["grad_sum"] = values.astype(np.float32)
                writer.commit_entry(
                    writer.end, writer.end + 4, layout=number, windows=2, arrays=arrays, details={}
                )
        ledgers.append(Ledger.open(one.path))
    unbroken, resumed = ledgers
    assert [entry.layout for entry in resumed.entries] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for name, record in unbroken.items():
        assert record.grad_sum.tobytes() == resumed[name].grad_sum.tobytes()


def test_another_shape_under_the_same_name_is_refused_when_written(
    book: Any, pair: Layout, parameter_of: Make
) -> None:
    with book.create() as writer:
        book.add(writer, pair)
        with pytest.raises(MismatchError, match=r"net\.0\.bias.*\(3,\).*\(4,\)"):
            book.add(writer, Layout.whole([parameter_of("net.0.bias", 4)]))


def test_another_shape_under_the_same_name_is_corruption_when_read(
    book: Any, pair: Layout, parameter_of: Make
) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
        # A writer that has forgotten what it wrote before.
        writer._stored[0] = replace(writer._stored[0], layout=Layout.whole([parameter_of("other", 1)]))
        book.commit(writer, book.add(writer, Layout.whole([parameter_of("net.0.bias", 4)])))
    with pytest.raises(CorruptLedgerError, match=r"net\.0\.bias.*layout 1.*\(3,\).*\(4,\)"):
        Ledger.open(book.path)


def test_counts_are_summed_per_parameter(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number, details={"counts": counts(2, 3)})
        book.commit(writer, number, details={"counts": counts(2, 5)})
    bias = Ledger.open(book.path)["net.0.bias"]
    assert (bias.steps, bias.missing, bias.zero, bias.nonfinite, bias.skipped) == (82, 84, 86, 88, 90)


def test_counts_that_were_not_recorded_are_not_zero(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    with pytest.raises(UnknownNameError, match="steps"):
        _ = Ledger.open(book.path)["net.0.bias"].steps


def test_the_history_joins_equal_updates_across_entries(book: Any, pair: Layout) -> None:
    def details(runs: list[Any]) -> dict[str, Any]:
        return {
            "groups": [
                {"optimizer": 0, "kind": "SGD", "parameters": [0], "runs": [[1, {"lr": 9.0}]]},
                {"optimizer": 1, "kind": "AdamW", "parameters": [1], "runs": runs},
            ]
        }

    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number, details=details([[2, {"lr": 0.1}], [2, {"lr": 0.2}]]))
        book.commit(writer, number, details=details([[4, {"lr": 0.2}]]))
    assert Ledger.open(book.path)["net.0.bias"].history == (
        Update("AdamW", 2, {"lr": 0.1}),
        Update("AdamW", 6, {"lr": 0.2}),
    )


def test_an_alias_is_the_same_record(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    ledger = Ledger.open(book.path)
    assert "head.weight" in ledger
    assert "head.weight" not in list(ledger)
    assert ledger["head.weight"] is ledger["net.0.weight"]


@pytest.mark.parametrize(
    ("asked", "near"),
    [("net.0.wieght", "net.0.weight"), ("head.wight", "head.weight"), ("net.0.bia", "net.0.bias")],
)
def test_an_unknown_name_is_told_its_nearest(book: Any, pair: Layout, asked: str, near: str) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    ledger = Ledger.open(book.path)
    assert asked not in ledger
    with pytest.raises(UnknownNameError, match=f"{asked}.*nearest is '{near}'"):
        ledger[asked]


def test_walking_over_small_parameters_reads_each_chunk_once(
    book: Any, parameter_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = 3
    with book.create() as writer:
        number = book.add(writer, Layout.whole([parameter_of(f"p{index}", 2) for index in range(20)]))
        for _ in range(entries):
            book.commit(writer, number)
    read: list[str] = []
    real = LocalStorage.open

    def open_once(self: LocalStorage, key: str) -> Any:
        read.append(key)
        return real(self, key)

    monkeypatch.setattr(LocalStorage, "open", open_once)
    for record in Ledger.open(book.path).values():
        for accumulator in ACCUMULATORS:
            getattr(record, accumulator)
    chunks = [key for key in read if "/c/" in key]
    assert len(chunks) == len(set(chunks)) == entries * len(ACCUMULATORS)


def test_opening_a_ledger_reads_no_array(book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    monkeypatch.setattr(array_reader.StoredArray, "blocks", None)
    ledger = Ledger.open(book.path)
    assert "4 steps" in repr(ledger)
    assert "2 parameters" in repr(ledger)
    assert "3 x 5" in repr(ledger["net.0.weight"])


def test_settings_run_and_accumulators_come_back(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        run = writer.run_id
        book.commit(writer, book.add(writer, pair))
    ledger = Ledger.open(book.path)
    assert (ledger.run_id, ledger.settings, ledger.accumulators) == (run, {"window_steps": 4}, ACCUMULATORS)
    assert ledger.path == str(book.path)
