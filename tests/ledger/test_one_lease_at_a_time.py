from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from gradtrace.errors import LedgerBusyError, LedgerNotFoundError, StateError, StorageError
from gradtrace.ledger import lease as leases
from gradtrace.ledger.array_writer import write_array
from gradtrace.ledger.format import Layout
from gradtrace.ledger.location import storage_at
from gradtrace.ledger.versioned_object import VersionedObject
from gradtrace.ledger.writer import LedgerWriter

# 60 s in which a write may begin, 60 s of retries and 30 s for the last request.
RUNS_OUT = 150


class Clock:
    """The server's clock and this machine's, which go on only when told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.server = self.here = 0.0
        real = VersionedObject.now
        patch.setattr(
            VersionedObject, "now", lambda place, key: real(place, key) + timedelta(seconds=self.server)
        )
        patch.setattr(leases, "monotonic", lambda: self.here)
        # No renewal but those that the writer asks for.
        patch.setattr(leases, "_EVERY", 3600.0)

    def advance(self, seconds: float) -> None:
        self.server += seconds
        self.here += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(params=["memory", "s3"])
def book(request: pytest.FixtureRequest, book_at: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "memory":
        yield book_at(f"memory://{uuid.uuid4().hex}/run")
        return
    s3 = request.getfixturevalue("s3")
    yield book_at(f"s3://{s3.bucket()}/run", s3.options())


def test_a_second_writer_is_refused_and_the_first_unharmed(book: Any, pair: Layout, clock: Clock) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        clock.advance(30)
        with pytest.raises(LedgerBusyError, match=r"renewed 30 s ago.*try again in 122 s"):
            book.reopen()
        with pytest.raises(LedgerBusyError):
            book.create(overwrite=True)
        book.commit(writer, number)
    book.check()
    book.reopen().close()


def test_a_killed_writer_s_lease_runs_out_by_the_server_s_clock(
    book: Any, pair: Layout, clock: Clock
) -> None:
    killed = book.create()
    number = book.add(killed, pair)
    book.commit(killed, number)
    clock.advance(RUNS_OUT)
    clock.here += 10_000
    with pytest.raises(LedgerBusyError):
        book.reopen()
    clock.advance(5)
    with book.reopen() as writer:
        book.commit(writer, number)
    book.check()


def test_a_writer_that_was_taken_over_commits_writes_and_removes_nothing(
    book: Any, pair: Layout, clock: Clock
) -> None:
    slow = book.create()
    number = book.add(slow, pair)
    book.commit(slow, number)
    entries = list(book.kept)
    clock.advance(RUNS_OUT + 5)
    with book.reopen() as writer:
        book.commit(writer, number)
        entries = list(book.kept)
        for call in (
            lambda: book.commit(slow, number),
            lambda: slow.void(0),
            lambda: slow._storage.write("entries/x", b""),
            lambda: slow._storage.delete_prefix("entries"),
            lambda: write_array(slow._storage, "entries/y", np.zeros(3, np.float32)),
        ):
            with pytest.raises(LedgerBusyError, match="taken over"):
                call()
        book.kept = entries
        book.commit(writer, number)
    slow.close()
    book.check()
    book.reopen().close()


def test_a_writer_that_was_away_goes_on_where_nobody_came(book: Any, pair: Layout, clock: Clock) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        clock.advance(10 * RUNS_OUT)
        book.commit(writer, number)
    book.check()


def test_a_write_renews_what_is_no_longer_fresh(book: Any, pair: Layout, clock: Clock) -> None:
    with book.create() as writer:
        for seconds in (10, leases.FRESH + 1):
            before = json.loads(writer._storage.get("writer.lease"))["renewals"]
            clock.advance(seconds)
            writer._storage.write(f"entries/{seconds}", b"")
            after = json.loads(writer._storage.get("writer.lease"))["renewals"]
            assert after - before == (seconds > leases.FRESH)


def test_a_renewal_whose_answer_got_lost_is_ours(
    book: Any, pair: Layout, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VersionedObject.put

    def put(place: VersionedObject, data: bytes, version: Any) -> Any:
        # The request is made again after its answer was lost, and meets what it has written itself.
        real(place, data, version)
        return real(place, data, version)

    monkeypatch.setattr(VersionedObject, "put", put)
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    book.check()


@pytest.mark.parametrize("lease", [b"", b"{", b"[]", b'{"holder": 3}', b'{"holder": "x", "seconds": "y"}'])
def test_a_lease_that_makes_no_sense_runs_out_too(
    book: Any, pair: Layout, clock: Clock, lease: bytes
) -> None:
    with book.create() as writer:
        book.commit(writer, book.add(writer, pair))
    storage_at(book.path, book.options).put("writer.lease", lease)
    with pytest.raises(LedgerBusyError):
        book.reopen()
    clock.advance(RUNS_OUT + 5)
    book.reopen().close()


def test_a_lease_for_ever_keeps_nobody_out_for_ever(book: Any, pair: Layout, clock: Clock) -> None:
    book.create().close()
    body = {"holder": "x", "released": False, "renewals": 0, "seconds": 10**15}
    storage_at(book.path, book.options).put("writer.lease", json.dumps(body).encode())
    clock.advance(3605)
    book.reopen().close()


def test_the_lease_is_renewed_while_the_writer_waits(book: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_EVERY", 0.01)
    with book.create() as writer:
        before = json.loads(writer._storage.get("writer.lease"))["renewals"]
        deadline = datetime.now(UTC) + timedelta(seconds=30)
        while json.loads(writer._storage.get("writer.lease"))["renewals"] < before + 2:
            assert datetime.now(UTC) < deadline
    assert json.loads(storage_at(book.path, book.options).get("writer.lease") or b"")["released"]


def test_what_a_killed_creation_leaves_can_be_begun_on(book: Any, clock: Clock) -> None:
    storage = storage_at(book.path, book.options)
    storage.lock()
    with pytest.raises(LedgerNotFoundError):
        book.reopen()
    with pytest.raises(LedgerBusyError):
        book.create()
    clock.advance(RUNS_OUT + 5)
    book.create().close()


def test_a_closed_writer_says_so(book: Any, pair: Layout) -> None:
    writer = book.create()
    writer.close()
    writer.close()
    with pytest.raises(StateError, match="closed"):
        book.add(writer, pair)


def test_without_its_bucket_no_ledger_begins(s3: Any) -> None:
    with pytest.raises(StorageError, match="NoSuchBucket"):
        LedgerWriter.create("s3://no-such-bucket/run", settings={}, storage_options=s3.options())
