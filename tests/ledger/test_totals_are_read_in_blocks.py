from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import CorruptLedgerError
from gradtrace.ledger import array_format, array_reader
from gradtrace.ledger.format import ACCUMULATORS, Layout, ParameterInfo
from gradtrace.ledger.reader import Ledger

Make = Callable[..., ParameterInfo]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of up to 9 elements in blocks of 4: parameters share chunks, and fill several."""
    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", 9)
    monkeypatch.setattr(array_reader, "BLOCK", 16)


@pytest.fixture
def uneven(parameter_of: Make) -> Layout:
    sizes = (31, 2, 7, 1, 19, 8)
    return Layout.whole([parameter_of(f"p{index}", size) for index, size in enumerate(sizes)])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("entries", [1, 2, 4, 5, 9])
def test_totals_are_the_sums_however_many_entries_there_are(book: Any, uneven: Layout, entries: int) -> None:
    with book.create() as writer:
        number = book.add(writer, uneven)
        for _ in range(entries):
            book.commit(writer, number)
    book.check()


@pytest.mark.usefixtures("small_blocks")
def test_several_threads_may_read_one_ledger(book: Any, uneven: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, uneven)
        for _ in range(3):
            book.commit(writer, number)
    ledger = Ledger.open(book.path)
    asked = [(name, accumulator) for name in ledger for accumulator in ACCUMULATORS] * 5

    def read(one: tuple[str, str]) -> np.ndarray[Any, Any]:
        total: np.ndarray[Any, Any] = getattr(ledger[one[0]], one[1])
        return total

    with ThreadPoolExecutor(8) as pool:
        for one, total in zip(asked, pool.map(read, asked), strict=True):
            np.testing.assert_array_equal(total, book.total(*one), err_msg=str(one))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("position", [0, 15, 16, 31, -5, -4, -1])
@pytest.mark.parametrize("name", ["p0", "p2"])
def test_damage_in_any_block_is_noticed(book: Any, uneven: Layout, name: str, position: int) -> None:
    with book.create() as writer:
        number = book.add(writer, uneven)
        for _ in range(6):
            book.commit(writer, number)
    # Of the parameter of 31 elements the second chunk is all its own; that of 7 shares the fifth.
    chunk = {"p0": 1, "p2": 4}[name]
    path = book.path / f"entries/000000000020-000000000024-0000/rank-0000/grad_sum/c/{chunk}"
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptLedgerError, match=rf"{name}.*entry 20-24.*grad_sum: chunk {chunk} is"):
        _ = Ledger.open(book.path)[name].grad_sum
    assert Ledger.open(book.path)[name].votes.shape == (uneven.parameters[int(name[1])].size,)


def test_an_array_whose_metadata_say_something_else_is_refused(
    book: Any, uneven: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, uneven))
    # The checksums hold, but another chunk length is what this reader counts on.
    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", 10)
    with pytest.raises(CorruptLedgerError, match=r"p0.*entry 0-4.*chunk_grid in zarr\.json"):
        _ = Ledger.open(book.path)["p0"].grad_sum
