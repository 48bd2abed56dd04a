from __future__ import annotations

import gc
import pickle
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import CorruptLedgerError, StateError, UnknownNameError
from gradtrace.ledger import array_format, array_reader, sums, walk
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo, Piece
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter

Make = Callable[..., ParameterInfo]
SIZES = (31, 2, 7, 0, 1, 19, 8)
NAMES = tuple(f"p{index}" for index in range(len(SIZES)))


@pytest.fixture
def stored(book: Any, parameter_of: Make, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chunks of up to 9 elements, blocks of 4: parameters share chunks and blocks, and fill several."""
    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", 9)
    monkeypatch.setattr(array_reader, "BLOCK", 16)
    monkeypatch.setattr(walk, "_BLOCK", 4)
    with book.create() as writer:
        number = book.add(writer, Layout.whole(map(parameter_of, NAMES, SIZES)))
        for _ in range(3):
            book.commit(writer, number)
    return book


def walked(ledger: Ledger, names: Sequence[str], accumulators: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Put the blocks together again; each must begin where the one before ended."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name, part, totals in ledger.walk(names, accumulators):
        own = found.setdefault(name, {one: [] for one in accumulators})
        for one, total in totals.items():
            assert part.start == sum(map(len, own[one]))
            assert part.stop - part.start == len(total) <= 4
            own[one].append(total.copy())
    assert list(found) == list(names)
    return {name: {one: np.concatenate(total) for one, total in own.items()} for name, own in found.items()}


@pytest.mark.parametrize("names", [NAMES, NAMES[:1], NAMES[3:4], ("p0", "p2", "p6"), ("p6", "p0", "p5"), ()])
@pytest.mark.parametrize("accumulators", [("grad_sum",), tuple(ACCUMULATORS), ("events", "window_sumsq")])
@pytest.mark.parametrize("side_by_side", [2, 3])
def test_blocks_are_the_totals(
    stored: Any,
    names: Sequence[str],
    accumulators: Sequence[str],
    side_by_side: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sums, "SIDE_BY_SIDE", side_by_side)  # of three entries
    ledger = Ledger.open(stored.path)
    found = walked(ledger, names, accumulators)
    for name in names:
        for one in accumulators:
            np.testing.assert_array_equal(found[name][one], stored.total(name, one).ravel())
            assert found[name][one].dtype == getattr(ledger[name], one).dtype


@pytest.mark.parametrize("accumulators", [("opening",), ("grad_sum", "opening", "events")])
@pytest.mark.parametrize("side_by_side", [2, 3])
def test_the_opening_balance_comes_along(
    stored: Any, accumulators: Sequence[str], side_by_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "SIDE_BY_SIDE", side_by_side)
    ledger = Ledger.open(stored.path)
    for name, totals in walked(ledger, NAMES, accumulators).items():
        np.testing.assert_array_equal(totals["opening"], ledger[name].opening.ravel())
        assert totals["opening"].dtype == np.float32


def test_what_is_spread_over_ranks_or_layouts_comes_whole(book: Any, parameter_of: Make) -> None:
    infos = [parameter_of("split", 4, 3), parameter_of("own", 5, 2)]
    ranks = (
        (Piece(0, 0, (0, 0), (3, 3)), Piece(1, 12, (0, 0), (5, 2))),
        (Piece(0, 2, (3, 0), (1, 3)),),
    )
    with book.create() as writer:
        book.commit(writer, book.add(writer, Layout(tuple(infos), ranks)))
        book.commit(writer, book.add(writer, Layout.whole([parameter_of("new", 2), infos[0]])))
    ledger = Ledger.open(book.path)
    for name in ("split", "own", "new"):
        blocks = list(ledger.walk([name], ["grad_sum", "opening"]))
        assert len(blocks) == 1
        np.testing.assert_array_equal(blocks[0].totals["opening"], ledger[name].opening.ravel())
        np.testing.assert_array_equal(blocks[0].totals["grad_sum"], book.total(name, "grad_sum").ravel())


def test_each_chunk_is_read_once(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[tuple[str, int]] = Counter()
    blocks = array_reader.StoredArray.blocks

    def counted(self: Any, number: int) -> Any:
        read[self._key, number] += 1
        return blocks(self, number)

    monkeypatch.setattr(array_reader.StoredArray, "blocks", counted)
    walked(Ledger.open(stored.path), [name for name in NAMES if name != "p3"], ["grad_sum", "events"])
    assert set(read.values()) == {1}
    assert len(read) == 2 * 3 * 8  # 68 elements in 8 chunks


def test_what_lies_between_is_not_read(stored: Any) -> None:
    for chunk in (4, 5):
        path = stored.path / f"entries/000000000000-000000000004-0000/rank-0000/grad_sum/c/{chunk}"
        assert path.exists()
        path.write_bytes(b"")
    walked(Ledger.open(stored.path), ["p0", "p6"], ["grad_sum"])
    with pytest.raises(CorruptLedgerError, match=r"parameter 'p.': entry 0-4 .*grad_sum: chunk 4"):
        walked(Ledger.open(stored.path), NAMES, ["grad_sum"])


def test_a_walk_that_is_left_closes_its_files(stored: Any) -> None:
    blocks = Ledger.open(stored.path).walk(NAMES, ["grad_sum", "events"])
    assert isinstance(blocks, Generator)
    next(blocks)
    blocks.close()
    gc.collect()  # a file left open would warn, and warnings are errors


def test_what_was_not_recorded_is_an_error(stored: Any) -> None:
    with pytest.raises(UnknownNameError, match="position_sumsq"):
        walked(Ledger.open(stored.path), NAMES, ["grad_sum", "position_sumsq"])
    with pytest.raises(UnknownNameError, match="parameter: expected a name in the ledger"):
        Ledger.open(stored.path).walk(["other"], ["grad_sum"])


def test_a_pickled_ledger_is_the_same_entries_opened_again(stored: Any) -> None:
    ledger = Ledger.open(stored.path)
    part = ledger.between(ledger.entries[1].begin)
    sent = pickle.dumps(ledger), pickle.dumps(part)
    with LedgerWriter.reopen(stored.path) as writer:
        stored.commit(writer, 0)
    again, part_again = map(pickle.loads, sent)
    assert again.steps == ledger.steps < Ledger.open(stored.path).steps
    assert (again.partial, part_again.partial) == (False, True)
    np.testing.assert_array_equal(again["p0"].grad_sum, ledger["p0"].grad_sum)
    np.testing.assert_array_equal(part_again["p0"].events, part["p0"].events)
    assert pickle.loads(sent[1]) is part_again


def test_a_pickled_ledger_whose_entries_are_gone_asks_to_be_opened_again(stored: Any) -> None:
    sent = pickle.dumps(Ledger.open(stored.path))
    with LedgerWriter.reopen(stored.path) as writer:
        writer.void(4)
    with pytest.raises(StateError, match="Open the ledger again"):
        pickle.loads(sent)
