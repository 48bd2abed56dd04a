from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.merging import cell_of, plan_merges
from gradtrace.ledger.retention import entries_left


def entries_of(
    *lengths: int, layouts: Sequence[int] = (), details: Sequence[dict[str, Any]] = ()
) -> list[Entry]:
    entries, begin = [], 0
    for index, length in enumerate(lengths):
        layout = layouts[index] if layouts else 0
        entries.append(Entry(begin, begin + length, 0, layout, 1, details[index] if details else {}))
        begin += length
    return entries


def merged(entries: Sequence[Entry], protected: Sequence[int] | None = ()) -> list[Entry]:
    left = list(entries)
    for run in plan_merges(left, protected):
        place = left.index(run[0])
        left[place : place + len(run)] = [Entry(run[0].begin, run[-1].end, 1, run[0].layout, len(run), {})]
    return left


def ends(entries: Sequence[Entry]) -> list[int]:
    return [entry.end for entry in entries]


@pytest.mark.parametrize("length", [1, 7, 32, 100, 256])
def test_a_long_run_that_merges_as_it_goes_has_logarithmically_many_entries(length: int) -> None:
    entries: list[Entry] = []
    for number in range(1, 2001):
        entries.append(Entry((number - 1) * length, number * length, 0, 0, 1, {}))
        entries = merged(entries)
        assert len(entries) <= 5 * (1 + math.log2(number))
        # The latest stay as they are.
        assert all(entry.steps == length for entry in entries[-4:])


def test_a_hundred_thousand_entries_become_some_dozens_at_once() -> None:
    assert len(merged(entries_of(*[256] * 100_000))) <= 5 * (1 + math.log2(100_000))


def test_no_entry_is_wider_than_a_quarter_of_its_age_unless_it_was_recorded_so() -> None:
    entries = merged(entries_of(*[8] * 1000))
    for entry in entries:
        assert entry.steps <= max(8, (8000 - entry.begin) / 4)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    stops=st.sets(st.integers(1, 60)),
)
def test_the_boundaries_do_not_depend_on_when_merges_were_made(lengths: list[int], stops: set[int]) -> None:
    recorded, now_and_then = entries_of(*lengths), []
    for number, entry in enumerate(recorded, 1):
        now_and_then.append(entry)
        if number in stops:
            now_and_then = merged(now_and_then)
    assert ends(merged(now_and_then)) == ends(merged(recorded))


@given(step=st.integers(0, 10**12), later=st.integers(1, 10**6), more=st.integers(0, 10**12))
def test_cells_hold_their_step_and_only_ever_unite(step: int, later: int, more: int) -> None:
    begin, end = cell_of(step, step + later)
    assert begin <= step < end
    wider = cell_of(step, step + later + more)
    assert wider[0] <= begin
    assert wider[1] >= end
    assert cell_of(begin, step + later) == cell_of(end - 1, step + later) == (begin, end)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    choice=st.sets(st.integers(0, 60)),
    switch=st.integers(0, 60),
)
def test_neither_a_protected_step_nor_a_change_of_layout_is_crossed(
    lengths: list[int], choice: set[int], switch: int
) -> None:
    layouts = [int(index >= switch) for index in range(len(lengths))]
    entries = entries_of(*lengths, layouts=layouts)
    protected = [entries[index].end for index in choice if index < len(entries)]
    changes = [entries[switch].begin] if 0 < switch < len(entries) else []
    left = ends(merged(entries, protected))
    assert {*protected, *changes, entries[-1].end} <= set(left)


def test_steps_where_a_checkpoint_was_saved_are_protected_unless_others_are_named() -> None:
    marked = [{"follows_checkpoint": True} if index in (3, 6) else {} for index in range(12)]
    entries = entries_of(*[4] * 11, 1000, details=marked)
    assert ends(merged(entries, None)) == [12, 24, 1044]
    assert ends(merged(entries, [])) == [1044]
    assert ends(merged(entries, [24])) == [24, 1044]


@pytest.mark.parametrize(
    ("steps", "length"), [(1, 32), (32, 32), (33, 32), (4_000, 4), (51_200, 512), (999, 7)]
)
def test_what_a_run_will_keep_is_told_before_it_begins(steps: int, length: int) -> None:
    last = [steps % length] if steps % length else []
    entries = entries_of(*[length] * (steps // length), *last)
    assert entries_left(steps, length) == len(merged(entries))


def test_a_protected_step_costs_at_most_one_entry_more() -> None:
    entries = entries_of(*[4] * 500)
    assert len(merged(entries, [804, 1212])) <= len(merged(entries)) + 2


@pytest.mark.parametrize(
    ("protected", "nearest"), [([5], 4), ([4, 7], 8), ([13], 12), ([-1], 0), ([True], 0), (["4"], 12)]
)
def test_a_protected_step_where_no_entry_ends_names_the_nearest(protected: list[Any], nearest: int) -> None:
    with pytest.raises(InvalidValueError, match=f"protected step.*nearest one is {nearest}"):
        plan_merges(entries_of(4, 4, 4), protected)


def test_protected_steps_that_are_no_collection_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="protected steps"):
        plan_merges(entries_of(4), 4)  # type: ignore[arg-type]


def test_nothing_is_planned_for_an_empty_ledger() -> None:
    assert plan_merges([]) == ()


COUNTS: dict[str, Any] = {name: [1] for name in ("steps", "missing", "zero", "nonfinite", "skipped")}


@pytest.mark.parametrize(
    ("details", "joined"),
    [
        ([{}, {}], True),
        ([{"counts": COUNTS}, {"counts": COUNTS}], True),
        ([{"groups": []}, {"passed_cuts": 2}], True),
        ([{"counts": COUNTS}, {}], False),
        ([{"fingerprint": "af"}, {"fingerprint": "af"}], False),
        ([{"counts": COUNTS | {"late": [1]}}, {"counts": COUNTS}], False),
        ([{"passed_cuts": [1]}, {}], False),
    ],
)
def test_details_that_could_not_be_told_again_keep_entries_apart(
    details: list[dict[str, Any]], joined: bool
) -> None:
    entries = entries_of(4, 4, 40, details=[*details, {}])
    assert plan_merges(entries) == ((tuple(entries[:2]),) if joined else ())
