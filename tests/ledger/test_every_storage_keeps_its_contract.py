from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.sync import sync

from gradtrace.errors import InvalidValueError, LedgerBusyError
from gradtrace.ledger.array_writer import write_array
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.location import storage_at
from gradtrace.ledger.object_storage import ObjectStorage
from gradtrace.ledger.storage import Storage

STRANGE = ["..", "a/../b", "/a", "a//b", "a/", ".", ".a", "a b", "a\\b", "a\0", "é", "a?b", "a%2fb", "a:b"]
CALLS = ["get", "open", "names", "put", "write", "delete_prefix", "sync", "zarr_store"]


@pytest.fixture(params=["disk", "memory", "s3", "s3 without prefix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, ...]:
    if request.param == "disk":
        return (tmp_path / "new" / "run",)
    if request.param == "memory":
        return (f"memory://{uuid.uuid4().hex}/a/run",)
    s3 = request.getfixturevalue("s3")
    return f"s3://{s3.bucket()}" + ("/a/run" if request.param == "s3" else ""), s3.options()


class TestStorage:
    @pytest.fixture
    def storage(self, place: tuple[Any, ...]) -> Storage:
        storage = storage_at(*place)
        with storage.making():
            pass
        return storage

    def test_what_was_put_is_read_here_and_in_another_process_s_storage(
        self, storage: Storage, place: tuple[Any, ...]
    ) -> None:
        storage.put("a/b/one", b"1")
        storage.write("a/b/two", b"")
        storage.sync("a")
        for one in (storage, storage_at(*place)):
            assert (one.get("a/b/one"), one.get("a/b/two")) == (b"1", b"")
            assert one.exists()
            assert one.is_folder()
            assert not one.is_link()

    @pytest.mark.parametrize("key", ["none", "a/none", "a/b", "a/b/one/below"])
    def test_what_is_no_object_is_none(self, storage: Storage, key: str) -> None:
        storage.put("a/b/one", b"1")
        assert storage.get(key) is None
        assert storage.open(key) is None

    def test_an_object_is_read_from_its_beginning(self, storage: Storage) -> None:
        storage.put("one", bytes(range(200)))
        file = storage.open("one")
        assert file is not None
        with file:
            assert (file.read(3), file.read(), file.read(1)) == (b"\0\1\2", bytes(range(3, 200)), b"")

    def test_names_are_those_right_below_sorted_and_each_once(self, storage: Storage) -> None:
        for key in ("b/x/1", "b/x/2", "b/a", "ba", "b/z/1/2/3"):
            storage.put(key, b"")
        assert storage.names("b") == ["a", "x", "z"]
        assert storage.names("b/z") == ["1"]
        assert storage.names("") == ["b", "ba"]

    @pytest.mark.parametrize("prefix", ["none", "a/none", "a/one/below", "a/o"])
    def test_where_nothing_is_no_name_is(self, storage: Storage, prefix: str) -> None:
        storage.put("a/one", b"1")
        assert storage.names(prefix) == []

    def test_putting_again_replaces_and_leaves_no_other_name(self, storage: Storage) -> None:
        storage.put("a/one", b"long" * 1000)
        storage.put("a/one", b"short")
        assert storage.get("a/one") == b"short"
        assert storage.names("a") == ["one"]

    def test_removing_takes_the_object_and_all_below_and_nothing_beside(self, storage: Storage) -> None:
        for key in ("a/one", "a/b/two", "a/b/c/three", "ab", "a.b"):
            storage.put(key, b"")
        storage.delete_prefix("a/b")
        assert storage.names("a") == ["one"]
        storage.delete_prefix("ab")
        storage.delete_prefix("a")
        storage.delete_prefix("a")
        storage.delete_prefix("none/at/all")
        assert storage.names("") == ["a.b"]

    def test_zarr_writes_what_zarr_reads(self, storage: Storage) -> None:
        values = np.arange(1000, dtype=np.float32)
        write_array(storage, "a/values", values)
        storage.sync("a")
        array = zarr.open_array(storage.zarr_store("a/values", read_only=True), mode="r")
        np.testing.assert_array_equal(np.asarray(array[:]), values)
        assert storage.names("a/values") == ["c", "zarr.json"]
        # Not the groups above it either, as zarr would where it knew of them.
        assert (storage.names(""), storage.names("a")) == (["a"], ["values"])

    def test_zarr_lists_and_removes_below_its_prefix_only(self, storage: Storage) -> None:
        for key in ("a/one", "a/b/two", "ab/three"):
            storage.put(key, b"")
        store = storage.zarr_store("a")

        async def listed() -> tuple[set[str], ...]:
            found = {key async for key in store.list()}, {key async for key in store.list_dir("")}
            await store.delete_dir("b")
            return (*found, {key async for key in store.list_prefix("")})

        assert sync(listed()) == ({"one", "b/two"}, {"one", "b"}, {"one"})
        assert storage.names("ab") == ["three"]

    def test_zarr_may_not_write_what_is_read_only(self, storage: Storage) -> None:
        write_array(storage, "values", np.zeros(3, np.float32))
        array = zarr.open_array(storage.zarr_store("values", read_only=True), mode="r")
        with pytest.raises(ValueError, match=r"read.?only"):
            array[:] = 1

    def test_the_lock_is_one_writer_s_until_it_is_released(
        self, storage: Storage, place: tuple[Any, ...]
    ) -> None:
        lock = storage.lock()
        assert lock.is_locked
        with pytest.raises(LedgerBusyError, match="another process is writing"):
            storage_at(*place).lock()
        storage.put("a", b"")
        lock.release()
        lock.release()
        assert not lock.is_locked
        storage_at(*place).lock().release()

    def test_no_name_of_the_place_says_more_than_the_path(
        self, storage: Storage, place: tuple[Any, ...]
    ) -> None:
        assert storage.location == str(place[0])
        assert storage.at("a/b") == f"{place[0]}/a/b"


def test_nothing_exists_before_it_is_made(place: tuple[Any, ...]) -> None:
    storage = storage_at(*place)
    assert not storage.exists()
    assert (storage.get("a"), storage.names("")) == (None, [])


def test_a_place_that_was_made_in_vain_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), storage_at(tmp_path / "new" / "run").making():
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("key", STRANGE)
@pytest.mark.parametrize("kind", [LocalStorage, lambda path: ObjectStorage("memory://strange/run", {})])
def test_a_strange_key_is_refused(kind: Any, key: str, call: str, tmp_path: Path) -> None:
    storage = kind(tmp_path)
    arguments = (key, b"") if call in ("put", "write") else (key,)
    with pytest.raises(InvalidValueError, match="storage key"):
        getattr(storage, call)(*arguments)
    assert storage.names("") == []
