from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.format import ACCUMULATORS, Layout
from gradtrace.ledger.reader import Ledger


@pytest.fixture
def ledger(book: Any, pair: Layout) -> Ledger:
    """Entries 0-4 and 4-6 of one layout, 6-14 of another."""
    with book.create() as writer:
        first = book.add(writer, pair)
        book.commit(writer, first, 4)
        book.commit(writer, first, 2)
        book.commit(writer, book.add(writer, pair), 8)
    return Ledger.open(book.path)


@pytest.mark.parametrize("accumulator", sorted(ACCUMULATORS))
@pytest.mark.parametrize("boundary", [4, 6])
def test_the_two_sides_of_a_boundary_add_up_to_the_whole(
    ledger: Ledger, accumulator: str, boundary: int
) -> None:
    before, after = ledger.between(end=boundary), ledger.between(boundary)
    assert (before.steps, after.steps) == (boundary, 14)
    for name in ledger:
        parts = [getattr(side[name], accumulator) for side in (before, after)]
        assert parts[0].any()
        assert parts[1].any()
        np.testing.assert_array_equal(parts[0] + parts[1], getattr(ledger[name], accumulator))


def test_a_middle_entry_is_read_alone(ledger: Ledger) -> None:
    middle = ledger.between(4, 6)
    assert [(entry.begin, entry.end) for entry in middle.entries] == [(4, 6)]
    rest = ledger.between(end=4)["net.0.weight"].grad_sum + ledger.between(6)["net.0.weight"].grad_sum
    np.testing.assert_array_equal(middle["net.0.weight"].grad_sum, ledger["net.0.weight"].grad_sum - rest)


def test_a_part_has_parts(ledger: Ledger) -> None:
    again = ledger.between(end=6).between(4)
    np.testing.assert_array_equal(again["net.0.weight"].events, ledger.between(4, 6)["net.0.weight"].events)


@pytest.mark.parametrize(("begin", "end"), [(1, 6), (0, 5), (6, 4), (4, 4), (14, 14), (0, 99), ("a", None)])
def test_steps_that_are_no_boundaries_are_refused(ledger: Ledger, begin: Any, end: Any) -> None:
    with pytest.raises(InvalidValueError, match="0, 4, 6, 14"):
        ledger.between(begin, end)


def test_a_part_says_that_it_is_one(ledger: Ledger) -> None:
    assert not ledger.partial
    assert not ledger.between().partial
    assert ledger.between(end=6).partial
    assert ledger.between(end=6).between().partial
