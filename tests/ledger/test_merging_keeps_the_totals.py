from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradtrace.errors import CorruptLedgerError, InvalidValueError, StateError, UnsupportedFormatError
from gradtrace.ledger import array_format
from gradtrace.ledger.details import Update
from gradtrace.ledger.format import ACCUMULATORS, Layout, Piece
from gradtrace.ledger.merging import merge_ledger
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter


def names_on_disk(book: Any) -> set[str]:
    return {path.name for path in (book.path / "entries").iterdir() if path.is_dir()}


def random_arrays(size: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    floats = {n: random.normal(size=size) * 10.0 ** random.integers(-6, 6, size) for n in ACCUMULATORS}
    counts = {n: random.integers(0, 2**24, size) for n in ACCUMULATORS}
    return {n: (floats if d == "float32" else counts)[n].astype(d) for n, d in ACCUMULATORS.items()}


@pytest.mark.parametrize("elements", [5, 4194304])
def test_counts_stay_exact_and_a_sum_is_rounded_once_to_float32(
    book: Any, pair: Layout, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", elements)
    parts = [random_arrays(18, seed) for seed in range(20)]
    with book.create() as writer:
        number = book.add(writer, pair)
        for index, arrays in enumerate(parts):
            writer.commit_entry(index * 4, index * 4 + 4, layout=number, windows=1, arrays=arrays, details={})
        before = writer.entries
        assert writer.merge() > 2
        spans = [[i for i, old in enumerate(before) if e.begin <= old.begin < e.end] for e in writer.entries]
    ledger = Ledger.open(book.path)
    assert ledger["net.0.bias"].windows == 20
    for name, dtype in ACCUMULATORS.items():
        read = np.concatenate([getattr(ledger[p], name).ravel() for p in ("net.0.weight", "net.0.bias")])
        wide = np.float64 if dtype == "float32" else np.int64
        sums = [np.sum([parts[i][name].astype(wide) for i in span], axis=0) for span in spans]
        if dtype == "float32":
            roundings = np.sum([np.spacing(np.abs(one).astype(np.float32)) for one in sums], axis=0)
            assert (np.abs(read - np.sum(sums, axis=0)) <= roundings / 2 * (1 + 1e-6)).all()
        else:
            np.testing.assert_array_equal(read, np.sum(sums, axis=0), err_msg=name)


def test_a_run_that_merges_after_every_entry_keeps_its_totals_and_few_entries(
    book: Any, pair: Layout
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for _ in range(40):
            book.commit(writer, number)
            book.merge(writer)
        assert len(writer.entries) <= 19
        assert names_on_disk(book) == {
            f"{e.begin:012d}-{e.end:012d}-{e.generation:04d}" for e in writer.entries
        }
    ledger = book.check()
    assert ledger.steps == 160
    LedgerWriter.reopen(book.path).close()
    book.check()


def test_several_ranks_gaps_and_empty_parameters_are_merged(book: Any, parameter_of: Any) -> None:
    layout = Layout(
        (parameter_of("w", 4, 5), parameter_of("scale"), parameter_of("none", 0, 4)),
        (
            (Piece(0, 0, (0, 0), (2, 5)),),
            (Piece(1, 0, (), ()), Piece(0, 4, (2, 3), (2, 2))),
            (Piece(0, 0, (2, 0), (2, 3)),),
            (),
        ),
    )
    with book.create() as writer:
        number = book.add(writer, layout)
        for steps in (4, 4, 40):
            book.commit(writer, number, steps)
        assert book.merge(writer) == 2
    book.check()


def test_layouts_are_never_crossed(book: Any, pair: Layout, parameter_of: Any) -> None:
    wider = Layout.whole([parameter_of("late", 2, 2), *pair.parameters])
    with book.create() as writer:
        first = book.add(writer, pair)
        for _ in range(3):
            book.commit(writer, first)
        second = book.add(writer, wider)
        for steps in (4, 4, 4, 200):
            book.commit(writer, second, steps)
        assert book.merge(writer) == 7
        assert [(e.end, e.layout) for e in writer.entries] == [(12, first), (224, second)]
    ledger = book.check()
    np.testing.assert_array_equal(ledger["late"].opening.ravel(), book.openings[second][0][:4])
    np.testing.assert_array_equal(ledger["net.0.weight"].opening.ravel(), book.openings[first][0][:15])


def test_resuming_works_at_a_protected_step_and_names_the_nearest_elsewhere(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 4, 4, 100):
            book.commit(writer, number, steps)
    assert merge_ledger(book.path, keep_steps=[12]) == 3
    with LedgerWriter.reopen(book.path) as writer:
        book.follow(writer.entries)
        assert [entry.end for entry in writer.entries] == [12, 16, 116]
        with pytest.raises(InvalidValueError, match=r"where an entry ends, got 4.*nearest one is 0"):
            writer.void(4)
        with pytest.raises(InvalidValueError, match=r"got 8.*nearest one is 12"):
            writer.void(8)
        writer.void(12)
        book.keep_until(12)
        book.check()
        book.commit(writer, number, 4)
        book.commit(writer, number, 100)
        book.check()
        assert book.merge(writer) == 2
        assert [entry.end for entry in writer.entries] == [16, 116]
    book.check()


def test_a_protected_step_that_is_none_merges_nothing(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 40):
            book.commit(writer, number, steps)
    with pytest.raises(InvalidValueError, match=r"protected step.*got 6.*nearest one is 4"):
        merge_ledger(book.path, keep_steps=[6])
    book.check()


def test_voids_before_between_and_after_merges_count_as_they_did(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 40):
            book.commit(writer, number, steps)
        writer.void(8)
        book.keep_until(8)
        book.commit(writer, number, 40)
        assert book.merge(writer) == 2
        book.check()
        assert len(names_on_disk(book)) == 2, "what was voided is removed as well"
        writer.void(8)
        book.keep_until(8)
        for steps in (8, 100):
            book.commit(writer, number, steps)
        assert book.merge(writer, [8]) == 0
        assert book.merge(writer) == 2
        book.check()
        writer.void(0)
        book.keep_until(0)
        for steps in (4, 4, 40):
            book.commit(writer, number, steps)
        assert book.merge(writer) == 2
        book.check()
    with LedgerWriter.reopen(book.path) as writer:
        book.commit(writer, number)
    book.check()


def test_voided_data_is_removed_by_the_next_writer_with_the_layouts_that_only_it_named(
    book: Any, pair: Layout
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        book.commit(writer, book.add(writer, pair))
        writer.void(4)
        book.keep_until(4)
    with LedgerWriter.reopen(book.path) as writer:
        assert names_on_disk(book) == {"000000000000-000000000004-0000"}
        assert not (book.path / "layouts/0001").exists()
        assert book.add(writer, pair) == 1
        assert book.commit(writer, 1).generation == 1
    book.check()


def test_counts_add_and_the_history_stays_in_order(book: Any, pair: Layout) -> None:
    def details(step: int) -> dict[str, Any]:
        runs = [[2, {"lr": 0.1}], [2, {"lr": 0.1 if step < 2 else 0.2}]]
        # In the third entry the two parameters trade their optimizers.
        own, other = ([0], [1]) if step < 2 else ([1], [0])
        return {
            "counts": {
                name: [step + place, 2 * step + place]
                for place, name in enumerate(("steps", "missing", "zero", "nonfinite", "skipped"))
            },
            "groups": [
                {"optimizer": 0, "kind": "SGD", "parameters": own, "runs": runs},
                {"optimizer": 1, "kind": "AdamW", "parameters": other, "runs": [[4, {"lr": 1.0}]]},
                {"optimizer": 2, "kind": "Lion", "parameters": [0, 1], "runs": [[1, {"lr": 9.0}]]},
            ],
            "passed_cuts": step,
        }

    names = ("steps", "missing", "zero", "nonfinite", "skipped", "windows", "history")
    with book.create() as writer:
        number = book.add(writer, pair)
        for step in range(4):
            book.commit(writer, number, details=details(step))
        book.commit(writer, number, steps=100, details=details(4))
        ledger = Ledger.open(book.path)
        before = {(p, name): getattr(ledger[p], name) for p in ledger for name in names}
        assert book.merge(writer) == 4
        merged = writer.entries[0].details
    ledger = book.check()
    assert {(p, name): getattr(ledger[p], name) for p in ledger for name in names} == before
    assert before["net.0.bias", "history"][:2] == (
        Update("AdamW", 4, {"lr": 1.0}),
        Update("Lion", 1, {"lr": 9.0}),
    )
    assert merged["passed_cuts"] == 6


def test_a_group_that_goes_on_is_told_once(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 8, 100):
            groups = [
                {"optimizer": 0, "kind": "SGD", "parameters": [0], "runs": [[steps, {"lr": 0.1}]]},
                {"optimizer": 1, "kind": "AdamW", "parameters": [1], "runs": [[steps, {"lr": 0.2}]]},
            ]
            book.commit(writer, number, steps, details={"groups": groups})
        assert book.merge(writer) == 3
        assert writer.entries[0].details["groups"] == [
            {"optimizer": 0, "kind": "SGD", "parameters": [0], "runs": [[16, {"lr": 0.1}]]},
            {"optimizer": 1, "kind": "AdamW", "parameters": [1], "runs": [[16, {"lr": 0.2}]]},
        ]
    book.check()


@pytest.mark.parametrize(
    ("accumulator", "value"),
    [("events", 2**31), ("votes", -(2**30) - 1), ("votes", -(2**30)), ("grad_sumsq", 3e38)],
)
def test_a_sum_that_does_not_fit_leaves_the_entries_as_they_are(
    book: Any, pair: Layout, accumulator: str, value: float
) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 40):
            arrays = {name: np.zeros(18, dtype) for name, dtype in ACCUMULATORS.items()}
            arrays[accumulator][17] = value
            book.kept.append(
                (
                    writer.commit_entry(
                        writer.end, writer.end + steps, layout=number, windows=1, arrays=arrays, details={}
                    ),
                    [arrays],
                )
            )
        if value == -(2**30):
            assert book.merge(writer) == 2
        else:
            with pytest.raises(StateError, match=rf"entries 0-8.*{accumulator}"):
                writer.merge()
            assert len(names_on_disk(book)) == 3
        book.check()


def test_what_was_infinite_stays_infinite(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 40):
            arrays = {name: np.ones(18, dtype) for name, dtype in ACCUMULATORS.items()}
            arrays["grad_sumsq"][17] = np.inf
            writer.commit_entry(
                writer.end, writer.end + steps, layout=number, windows=1, arrays=arrays, details={}
            )
        assert writer.merge() == 2
    assert Ledger.open(book.path)["net.0.bias"].grad_sumsq.tolist() == [3.0, 3.0, np.inf]


def test_a_damaged_entry_is_not_merged_but_named(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 40):
            book.commit(writer, number, steps)
    chunk = book.path / "entries/000000000004-000000000008-0000/rank-0000/votes/c/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9] + bytes(9))
    with pytest.raises(CorruptLedgerError, match=r"entry 4-8.*rank-0000/votes.*chunk 0"):
        merge_ledger(book.path)
    assert len(names_on_disk(book)) == 3
    chunk.write_bytes(whole)
    book.check()


def test_arrays_of_a_later_library_are_not_merged_away(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 40):
            book.commit(writer, number, steps)
        writer._live[1].arrays["rank-0000/later"] = writer._live[1].arrays["rank-0000/votes"]
        with pytest.raises(UnsupportedFormatError, match="rank-0000/later"):
            writer.merge()
    book.check()


def test_merging_an_empty_or_a_young_ledger_does_nothing(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        assert writer.merge() == 0
        number = book.add(writer, pair)
        for _ in range(5):
            book.commit(writer, number)
        before = sorted(book.path.rglob("*"))
        assert writer.merge() == 0
        assert sorted(book.path.rglob("*")) == before
    assert merge_ledger(book.path) == 0
    book.check()


def test_each_joined_entry_is_told_once_it_is_there(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        for steps in (4, 4, 4, 4, 40):
            book.commit(writer, number, steps)
        told: list[Any] = []
        writer.merge([8], lambda entry: told.append((entry.begin, entry.end, len(writer.entries))))
        book.follow(writer.entries)
    assert told == [(0, 8, 4), (8, 16, 3)]
    book.check()
