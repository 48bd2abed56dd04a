from __future__ import annotations

import threading
from typing import Any

import pytest

from gradtrace.errors import StorageError
from gradtrace.ledger.format import Layout
from gradtrace.ledger.reader import Ledger


@pytest.fixture
def book(s3: Any, book_at: Any) -> Any:
    return book_at(f"s3://{s3.bucket()}/run", s3.options())


def steps(book: Any, options: Any) -> int:
    return Ledger.open(book.path, storage_options=options).steps


@pytest.mark.parametrize("fault", [500, 503, "hang"])
def test_a_server_that_fails_for_a_while_is_tried_again(
    s3: Any, book_at: Any, pair: Layout, fault: Any
) -> None:
    book = book_at(f"s3://{s3.bucket()}/run", s3.options(request=1.0))
    left = [6 if fault != "hang" else 2]

    def failing(method: str, path: str) -> Any:
        left[0] -= 1
        return fault if left[0] >= 0 else None

    with book.create() as writer:
        number = book.add(writer, pair)
        s3.fault = failing
        book.commit(writer, number)
        assert left[0] < 0
    s3.heal()
    book.check()


def test_a_server_that_goes_away_for_a_while_is_waited_for(s3: Any, book: Any, pair: Layout) -> None:
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        s3.go_away()
        back = threading.Timer(0.5, s3.come_back)
        back.start()
        try:
            book.commit(writer, number)
        finally:
            back.join()
    book.check()


@pytest.mark.parametrize("fault", [500, "hang", "away"])
def test_beyond_the_retries_it_is_one_error_and_the_same_writer_goes_on_later(
    s3: Any, book_at: Any, pair: Layout, fault: Any
) -> None:
    book = book_at(f"s3://{s3.bucket()}/run", s3.options(patience=0.2, request=1.0))
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        if fault == "away":
            s3.go_away()
        else:
            s3.fault = lambda method, path: fault
        try:
            with pytest.raises(
                StorageError, match=r"failed: the server (answered 500|did not|cannot)"
            ) as caught:
                book.commit(writer, number)
        finally:
            s3.come_back() if fault == "away" else s3.heal()
        assert any("the next writer" in note for note in caught.value.__notes__)
        book.check()
        book.commit(writer, number)
    book.check()


# A commit here changes 16 objects: two groups, two of each array, the lease and the commit itself.
@pytest.mark.parametrize("operation", [0, 1, 2, 3, 8, 13, 14, 15])
@pytest.mark.parametrize("dies", [False, True], ids=["once", "from then on"])
def test_permission_denied_at_any_write_leaves_what_was_committed(
    s3: Any, book: Any, pair: Layout, operation: int, dies: bool
) -> None:
    count = [0]

    def denied(method: str, path: str) -> int | None:
        if method == "GET":
            return None
        count[0] += 1
        number = count[0] - 1
        return 403 if number == operation or (dies and number > operation) else None

    writer = book.create()
    number = book.add(writer, pair)
    book.commit(writer, number)
    s3.fault = denied
    with pytest.raises(StorageError, match="403"):
        book.commit(writer, number)
    s3.heal()
    assert steps(book, book.options) == 4
    book.check()
    if not dies:
        book.commit(writer, number)
    writer.close()
    with book.reopen() as successor:
        book.commit(successor, number)
    book.check()
    assert len(successor._storage.names("entries")) == len(book.kept) + 1
