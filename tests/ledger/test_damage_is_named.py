from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradtrace.errors import CorruptLedgerError, GradtraceError, UnsupportedFormatError
from gradtrace.ledger import array_format
from gradtrace.ledger.format import ACCUMULATORS, Layout
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter

ENTRY = "000000000004-000000000008-0000"
WEIGHT = f"entries/{ENTRY}/rank-0000/grad_sum"


@pytest.fixture
def ledger(book: Any, pair: Layout, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three entries of 18 elements in chunks of 9: the bias lies in the second chunk only."""
    monkeypatch.setattr(array_format, "CHUNK_ELEMENTS", 9)
    with book.create() as writer:
        number = book.add(writer, pair)
        for _ in range(3):
            book.commit(writer, number)
    path: Path = book.path
    return path


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 0x04
    path.write_bytes(raw)


def lose(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def flip_in_front(path: Path) -> None:
    flip(path, 3)


def flip_at_the_end(path: Path) -> None:
    flip(path, -1)


DAMAGES = [lose, truncate, empty, lengthen, flip_in_front, flip_at_the_end]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["zarr.json", "c/1"])
def test_a_damaged_array_is_an_error_that_names_entry_array_and_parameter(
    ledger: Path, damage: Callable[[Path], None], file: str
) -> None:
    damage(ledger / WEIGHT / file)
    record = Ledger.open(ledger)["net.0.bias"]
    with pytest.raises(CorruptLedgerError, match=r"net\.0\.bias.*entry 4-8.*rank-0000/grad_sum") as caught:
        _ = record.grad_sum
    assert ("zarr.json" if file == "zarr.json" else "chunk 1") in str(caught.value)


def test_a_lost_chunk_of_zeros_is_not_read_as_zeros(book: Any, pair: Layout) -> None:
    zeros = {name: np.zeros(18, dtype) for name, dtype in ACCUMULATORS.items()}
    with book.create() as writer:
        number = book.add(writer, pair)
        writer.commit_entry(0, 4, layout=number, windows=1, arrays=zeros, details={})
    (book.path / "entries/000000000000-000000000004-0000/rank-0000/events/c/0").unlink()
    with pytest.raises(CorruptLedgerError, match="chunk 0 is missing"):
        _ = Ledger.open(book.path)["net.0.weight"].events


def test_damage_to_one_chunk_leaves_the_others_readable(ledger: Path, book: Any) -> None:
    lose(ledger / WEIGHT / "c/0")
    opened = Ledger.open(ledger)
    np.testing.assert_array_equal(opened["net.0.bias"].grad_sum, book.total("net.0.bias", "grad_sum"))
    np.testing.assert_array_equal(opened["net.0.weight"].votes, book.total("net.0.weight", "votes"))


def test_a_chunk_of_another_entry_is_noticed_although_its_own_checksum_holds(ledger: Path) -> None:
    other = ledger / WEIGHT.replace(ENTRY, "000000000000-000000000004-0000")
    (ledger / WEIGHT / "c/1").write_bytes((other / "c/1").read_bytes())
    with pytest.raises(CorruptLedgerError, match="entry 4-8"):
        _ = Ledger.open(ledger)["net.0.bias"].grad_sum


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["zarr.json", "c/1"])
def test_a_damaged_opening_balance_is_an_error_that_names_it(
    ledger: Path, damage: Callable[[Path], None], file: str
) -> None:
    damage(ledger / "layouts/0000/rank-0000/opening" / file)
    record = Ledger.open(ledger)["net.0.bias"]
    with pytest.raises(CorruptLedgerError, match=r"net\.0\.bias.*layout 0.*rank-0000/opening"):
        _ = record.opening


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [f"commits/{ENTRY}.json", "layouts/0000/layout.json"])
@pytest.mark.parametrize("use", [Ledger.open, LedgerWriter.reopen])
def test_a_damaged_commit_or_layout_is_an_error_that_names_it(
    ledger: Path, damage: Callable[[Path], None], file: str, use: Callable[[Path], object]
) -> None:
    damage(ledger / file)
    # A commit that is gone cannot be named: what is left does not join.
    said = "entries do not join" if damage is lose and file.startswith("commits") else file
    with pytest.raises(CorruptLedgerError, match=said):
        use(ledger)


@pytest.mark.parametrize("damage", [lose, truncate, empty, flip_in_front])
def test_a_damaged_root_is_an_error_that_names_it(ledger: Path, damage: Callable[[Path], None]) -> None:
    damage(ledger / "zarr.json")
    with pytest.raises(CorruptLedgerError, match=r"zarr\.json"):
        Ledger.open(ledger)


def test_the_data_of_a_lost_commit_is_not_swept_away(ledger: Path) -> None:
    (ledger / f"commits/{ENTRY}.json").unlink()
    with pytest.raises(CorruptLedgerError):
        LedgerWriter.reopen(ledger)
    assert (ledger / WEIGHT / "c/1").exists()


def test_a_commit_under_another_name_is_an_error(ledger: Path) -> None:
    (ledger / f"commits/{ENTRY}.json").rename(ledger / f"commits/{ENTRY[:-1]}1.json")
    with pytest.raises(CorruptLedgerError, match=f"{ENTRY[:-1]}1"):
        Ledger.open(ledger)


@pytest.mark.parametrize("file", [f"commits/{ENTRY}.json", "layouts/0000/layout.json", "zarr.json"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_in_what_is_json_is_noticed(ledger: Path, file: str, data: st.DataObject) -> None:
    path = ledger / file
    sound = path.read_bytes()
    position = data.draw(st.integers(0, len(sound) - 1))
    bit = data.draw(st.integers(0, 7))
    path.write_bytes(sound[:position] + bytes([sound[position] ^ 1 << bit]) + sound[position + 1 :])
    try:
        opened = Ledger.open(ledger)
    except GradtraceError:
        pass
    else:
        # A flip in zarr's own members of the root, such as in the word "group", touches nothing of ours.
        assert file == "zarr.json"
        assert (opened.steps, opened.settings) == (12, {"window_steps": 4})
    finally:
        path.write_bytes(sound)


def rewrite(path: Path, **changes: Any) -> None:
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["gradtrace"] |= changes
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "1", "1.x", "", "one"])
def test_an_unknown_format_number_is_refused_by_name(ledger: Path, version: str) -> None:
    rewrite(ledger, format=version)
    with pytest.raises(UnsupportedFormatError, match=rf"format.*1\.x.*{version}"):
        Ledger.open(ledger)


def seal(path: Path, **changes: Any) -> None:
    from gradtrace.ledger.encoding import checksum, encode

    root = json.loads((path / "zarr.json").read_text())
    body = root["attributes"]["gradtrace"] | changes
    del body["digest"]
    rewrite(path, **changes, digest=checksum(encode(body)))


def test_a_later_minor_format_is_read_but_not_appended_to(ledger: Path, book: Any) -> None:
    seal(ledger, format="1.7", novelty=[1, 2, 3])
    book.check()
    with pytest.raises(UnsupportedFormatError, match=r"1\.0.*1\.7"):
        LedgerWriter.reopen(ledger)


def test_unknown_accumulators_are_ignored(ledger: Path, book: Any) -> None:
    seal(ledger, accumulators={**ACCUMULATORS, "../../etc/passwd": "float16"})
    assert set(book.check().accumulators) == set(ACCUMULATORS)
