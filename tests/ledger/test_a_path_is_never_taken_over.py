from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradtrace.errors import (
    EmptyLedgerError,
    InvalidValueError,
    LedgerExistsError,
    LedgerNotFoundError,
    StorageError,
)
from gradtrace.ledger.format import Layout
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter, check_destination


def tree(path: Path) -> dict[str, bytes | None]:
    if path.is_file():
        return {".": path.read_bytes()}
    return {
        str(item.relative_to(path)): item.read_bytes() if item.is_file() else None for item in path.rglob("*")
    }


def folder_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def plain_file(path: Path) -> None:
    path.write_text("years of work")


def another_zarr_group(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}})
    )
    (path / "entries").mkdir()
    (path / "entries" / "measurement").write_text("years of work")


def broken_root(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")
    (path / "commits").mkdir()


def unfinished_download(path: Path) -> None:
    path.mkdir()
    (path / "film.partial").write_text("nearly there")


FOREIGN = [folder_with_a_file, plain_file, another_zarr_group, broken_root, unfinished_download]


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_never_touched(tmp_path: Path, make: Any, overwrite: bool) -> None:
    path = tmp_path / "run"
    make(path)
    before = tree(path)
    with pytest.raises(LedgerExistsError, match=r"left alone.*Choose another path"):
        LedgerWriter.create(path, settings={}, overwrite=overwrite)
    assert tree(path) == before


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("mode", [None, "overwrite"])
def test_what_is_not_ours_is_refused_before_training(tmp_path: Path, make: Any, mode: str | None) -> None:
    make(tmp_path / "run")
    with pytest.raises(LedgerExistsError):
        check_destination(tmp_path / "run", mode)


@pytest.mark.parametrize("make", [folder_with_a_file, plain_file, another_zarr_group, unfinished_download])
def test_what_is_not_ours_is_no_ledger_to_open(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "run")
    with pytest.raises(LedgerNotFoundError, match="run"):
        Ledger.open(tmp_path / "run")
    with pytest.raises(LedgerNotFoundError):
        LedgerWriter.reopen(tmp_path / "run")
    with pytest.raises(LedgerExistsError):
        check_destination(tmp_path / "run", "append")


@pytest.mark.parametrize("mode", [None, "append", "overwrite"])
def test_a_free_path_is_fine_and_stays_free(tmp_path: Path, mode: str | None) -> None:
    check_destination(tmp_path / "new" / "run", mode)
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", mode)
    assert tree(tmp_path) == {"empty": None}


def test_an_existing_ledger_needs_a_mode(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    before = tree(book.path)
    with pytest.raises(LedgerExistsError, match=r'mode="append".*mode="overwrite"'):
        book.create()
    with pytest.raises(LedgerExistsError, match=r'mode="append".*mode="overwrite"'):
        check_destination(book.path, None)
    check_destination(book.path, "append")
    check_destination(book.path, "overwrite")
    assert tree(book.path) == before
    book.check()


def test_an_empty_folder_is_used_and_missing_parents_are_made(
    book_at: Any, pair: Layout, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "run"):
        book = book_at(path)
        with book.create() as writer:
            book.commit(writer, book.add(writer, pair))
        book.check()


def test_overwriting_begins_a_new_run_and_leaves_the_files_of_others(book: Any, pair: Layout) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
        old = writer.run_id
    (book.path / "notes.txt").write_text("mine")
    with book.create(overwrite=True) as writer:
        assert (writer.end, dict(writer.layouts)) == (0, {})
        assert writer.run_id != old
        with pytest.raises(EmptyLedgerError):
            Ledger.open(book.path)
        book.kept.clear()
        book.commit(writer, book.add(writer, pair))
    book.check()
    assert (book.path / "notes.txt").read_text() == "mine"


def test_a_link_in_place_of_a_ledger_is_not_overwritten(book: Any, pair: Layout, tmp_path: Path) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    (tmp_path / "link").symlink_to(book.path)
    with pytest.raises(LedgerExistsError, match="symbolic link"):
        LedgerWriter.create(tmp_path / "link", settings={}, overwrite=True)
    assert Ledger.open(tmp_path / "link").steps == 4
    book.check()


@pytest.mark.parametrize("part", ["commits", "entries", "layouts"])
def test_a_link_inside_a_ledger_leads_no_overwriting_elsewhere(book: Any, tmp_path: Path, part: str) -> None:
    book.create().close()
    elsewhere = tmp_path / "elsewhere"
    folder_with_a_file(elsewhere)
    for name in ("000000000000-000000000004-0000", "0000", "000000000000-000000000004-0000.json"):
        (elsewhere / name).mkdir()
    before = tree(elsewhere)
    for item in (book.path / part).iterdir():
        item.unlink()
    (book.path / part).rmdir()
    (book.path / part).symlink_to(elsewhere)
    book.create(overwrite=True).close()
    assert tree(elsewhere) == before
    assert not (book.path / part).is_symlink()


@pytest.mark.parametrize(
    ("part", "name"),
    [("entries", "000000000000-000000000004-0000"), ("layouts", "0000"), ("commits", "x.partial")],
)
def test_a_link_inside_a_ledger_leads_no_cleaning_elsewhere(
    book: Any, tmp_path: Path, part: str, name: str
) -> None:
    book.create().close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder_with_a_file(elsewhere / name)
    (book.path / part / "zarr.json").unlink()
    (book.path / part).rmdir()
    (book.path / part).symlink_to(elsewhere)
    with pytest.raises(StorageError, match="symbolic link"):
        LedgerWriter.reopen(book.path)
    assert (elsewhere / name / "thesis.txt").exists()


@pytest.mark.parametrize(
    "key", ["../x", "a/../x", "/etc/passwd", "a//b", ".hidden", "a/", "a\\b", "a b", "ä"]
)
@pytest.mark.parametrize("call", ["get", "names", "put", "write", "delete_prefix", "sync"])
def test_a_key_cannot_leave_the_ledger(tmp_path: Path, key: str, call: str) -> None:
    storage = LocalStorage(tmp_path / "run")
    arguments = (key, b"x") if call in ("put", "write") else (key,)
    with pytest.raises(InvalidValueError, match="storage key"):
        getattr(storage, call)(*arguments)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "path", ["", "ftp://bucket/run", "s3://", "s3:///run", "s3://bucket/../run", "a\0b", 3, None, b"run"]
)
def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(InvalidValueError, match="ledger path"):
        Ledger.open(path)


def test_settings_that_are_not_json_make_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="JSON"):
        LedgerWriter.create(tmp_path / "run", settings={"lr": float("nan")})
    assert tree(tmp_path) == {}
