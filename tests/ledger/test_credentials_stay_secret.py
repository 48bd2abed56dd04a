from __future__ import annotations

import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest

from gradtrace.errors import GradtraceError, InvalidValueError, StorageError, UnsupportedError
from gradtrace.ledger.format import Layout
from gradtrace.ledger.location import storage_at
from gradtrace.ledger.merging import merge_ledger
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter, check_destination

SECRET = "hunter2-hunter2"


def said(error: BaseException) -> str:
    """All that a traceback, a log or a debugger would show of it and of its chain."""
    shown, at = [*traceback.format_exception(error)[1:], *traceback.format_exception_only(error)], error
    frames = "  File "
    shown = [line for line in shown if not line.startswith(frames)]
    link: BaseException | None = at
    while link is not None:
        shown += [repr(link), str(link), repr(link.args), repr(getattr(link, "__notes__", []))]
        link = link.__cause__ or link.__context__
    return "\n".join(shown)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://user:{SECRET}@bucket/run",
        f"s3://{SECRET}@bucket/run",
        f"s3://user:{SECRET}/x@bucket/run",
        f"s3://bucket/run?X-Amz-Signature={SECRET}",
        f"az://container/run?sig={SECRET}",
        f"s3://bucket/run#{SECRET}",
        f"https://user:{SECRET}@host/run",
        f"{SECRET}://bucket/run".replace("-", "_"),
        f"://{SECRET}",
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        Ledger.open,
        LedgerWriter.reopen,
        merge_ledger,
        lambda url: LedgerWriter.create(url, settings={}),
        lambda url: check_destination(url, None),
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str, call: Callable[[str], object]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        call(url)
    assert SECRET not in said(caught.value)
    assert SECRET.replace("-", "_") not in said(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"secret_access_key": SECRET, "no_such_option": SECRET},
        {"secret_access_key": 3.5, "session_token": SECRET},
        {"client_options": SECRET},
        {"client_options": {"no_such_option": SECRET}},
        {"client_options": {"timeout": SECRET}},
        {"retry_config": {"retry_timeout": SECRET}},
        {"retry_config": [SECRET]},
        SECRET,
        [SECRET],
        {3: SECRET},
    ],
)
def test_options_that_make_no_sense_are_named_without_their_values(options: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Ledger.open("s3://bucket/run", storage_options=options)
    assert SECRET not in said(caught.value)


@pytest.mark.parametrize("path", ["run", "memory://x/run"])
def test_options_where_none_are_taken_are_refused_without_their_values(path: str, tmp_path: Path) -> None:
    where = path if "://" in path else tmp_path / path
    with pytest.raises(InvalidValueError, match="secret_access_key") as caught:
        LedgerWriter.create(where, settings={}, storage_options={"secret_access_key": SECRET})
    assert SECRET not in said(caught.value)


@pytest.mark.parametrize("fault", [403, 401, 400, 500, "hang"])
def test_no_failure_of_a_server_says_more_than_what_failed(
    s3: Any, fault: Any, pair: Layout, book_at: Any
) -> None:
    options = s3.options(patience=0.3, request=0.5) | {"session_token": SECRET}
    book = book_at(f"s3://{s3.bucket()}/run", options)
    with book.create() as writer:
        number = book.add(writer, pair)
        s3.fault = lambda method, path: fault
        for call in (
            lambda: book.commit(writer, number),
            lambda: Ledger.open(book.path, storage_options=options),
            lambda: writer._storage.names("commits"),
            lambda: writer._storage.delete_prefix("commits"),
        ):
            with pytest.raises(StorageError) as caught:
                call()
            text = said(caught.value)
            for secret in (SECRET, s3.secret, s3.key, s3.endpoint):
                assert secret not in text
            assert "s3://" in str(caught.value)
        s3.heal()


def test_no_object_of_a_ledger_and_no_repr_holds_a_credential(s3: Any, pair: Layout, book_at: Any) -> None:
    bucket = s3.bucket()
    book = book_at(f"s3://{bucket}/run", s3.options() | {"session_token": SECRET})
    with book.create() as writer:
        number = book.add(writer, pair)
        book.commit(writer, number)
        writer.void(0)
        book.keep_until(0)
        book.commit(writer, number)
        shown = repr(writer) + repr(writer._storage) + repr(writer._storage.zarr_store("a"))
    shown += repr(Ledger.open(book.path, storage_options=book.options))
    client = storage_at(f"s3://{bucket}", s3.options())
    for batch in obstore.list(client._client):  # type: ignore[attr-defined]
        for one in batch:
            shown += one["path"] + (client.get(one["path"]) or b"").decode("latin-1")
    for secret in (SECRET, s3.secret, s3.key):
        assert secret not in shown


def test_without_obstore_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UnsupportedError, match=r"gradtrace\[cloud\]"):
        storage_at(f"memory://{uuid.uuid4().hex}/run")


def test_obstore_is_imported_only_for_an_object_store(tmp_path: Path) -> None:
    code = (
        "import sys; from gradtrace.ledger.writer import LedgerWriter; "
        f"LedgerWriter.create({str(tmp_path / 'run')!r}, settings={{}}).close(); "
        "assert not [name for name in sys.modules if name.startswith('obstore')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_refused_url_is_a_gradtrace_error_of_one_line() -> None:
    with pytest.raises(GradtraceError) as caught:
        storage_at(Path("s3://bucket/run"))
    assert "URL as text" in str(caught.value)


def test_plain_http_is_refused_with_the_way_to_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    reached = {
        "endpoint": "http://127.0.0.1:9",
        "region": "x",
        "access_key_id": "a",
        "secret_access_key": SECRET,
    }
    with pytest.raises(StorageError, match="AWS_ALLOW_HTTP") as caught:
        Ledger.open("s3://bucket/run", storage_options=reached | {"retry_config": {"max_retries": 0}})
    assert SECRET not in said(caught.value)
