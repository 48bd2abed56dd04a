"""The obstore client of a bucket: what it is made from, and how long it tries."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gradtrace.errors import InvalidValueError, UnsupportedError
from gradtrace.ledger.object_url import ObjectURL

if TYPE_CHECKING:
    from obstore.store import MemoryStore, ObjectStore

__all__ = ["longest_call", "make_client"]

# One request may take half a minute, which at 16 MB a chunk asks for 0.5 MB/s; a server that is away is
# tried again for a minute. The training thread never waits for either.
_CLIENT: Mapping[str, object] = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=5)}
_RETRY: Mapping[str, object] = {
    "max_retries": 20,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=8),
        "base": 2,
    },
}
_SPAN = re.compile(r"([0-9]{1,6}) ?(ms|s|sec|seconds?|m|min|minutes?)")
_MEMORY: dict[str, MemoryStore] = {}


def make_client(url: ObjectURL, storage_options: Mapping[str, object]) -> ObjectStore:
    """Return the client of the URL's bucket; of memory://name one a process and name.

    Args:
        url: which bucket; its prefix is left to the keys.
        storage_options: what obstore's S3Store, GCSStore or AzureStore takes, such as `region`, `endpoint` or
            `access_key_id`, and `client_options` and `retry_config` over the defaults here. What is not given
            comes from the environment (AWS_..., GOOGLE_..., AZURE_...).

    Raises:
        UnsupportedError: obstore is not installed.
        InvalidValueError: an option is unknown or of the wrong type; no value is repeated.
    """
    try:
        from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store
    except ImportError as error:
        raise UnsupportedError(
            f"a ledger at {url} needs obstore", remedy="pip install 'gradtrace[cloud]'"
        ) from error
    options = _checked(storage_options)
    if url.scheme == "memory":
        if options:
            raise InvalidValueError("storage_options", expected="none for memory://", got=_names(options))
        return _MEMORY.setdefault(url.bucket, MemoryStore())
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        return kinds[url.scheme](url.bucket, **_with_defaults(options))  # type: ignore[no-any-return]
    except Exception as error:
        kind = type(error).__name__
    raise InvalidValueError(
        "storage_options",
        expected=f"options of obstore.store.{kinds[url.scheme].__name__}",
        got=f"{kind} for {_names(options) or 'none'}",
        remedy="see https://developmentseed.org/obstore for the options and the environment variables",
    )


def longest_call(storage_options: Mapping[str, object]) -> float:
    """Return the seconds after which no request of a call is under way any more, retries included."""
    options = _with_defaults(_checked(storage_options))
    request: timedelta = options["client_options"]["timeout"]
    trying: timedelta = options["retry_config"]["retry_timeout"]
    return (trying + request).total_seconds()


def _checked(storage_options: object) -> dict[str, Any]:
    if not isinstance(storage_options, Mapping) or not all(isinstance(name, str) for name in storage_options):
        raise InvalidValueError("storage_options", expected="a mapping with names as keys", got="another")
    for name in ("client_options", "retry_config"):
        if not isinstance(storage_options.get(name, {}), Mapping):
            raise InvalidValueError(f"storage_options[{name!r}]", expected="a mapping", got="another")
    return dict(storage_options)


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    # obstore reads this one from the environment only where no client options are given at all.
    plain = {"allow_http": True} if os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true" else {}
    client = {**_CLIENT, **plain, **options.get("client_options", {})}
    retry = {**_RETRY, **options.get("retry_config", {})}
    for settings, name in ((client, "timeout"), (client, "connect_timeout"), (retry, "retry_timeout")):
        settings[name] = _span(name, settings[name])
    return {**options, "client_options": client, "retry_config": retry}


def _span(name: str, value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _SPAN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidValueError(name, expected="a datetime.timedelta or text such as '30s'", got="another")
    seconds = 0.001 if match[2] == "ms" else 60.0 if match[2].startswith("m") else 1.0
    return timedelta(seconds=int(match[1]) * seconds)


def _names(options: Mapping[str, object]) -> str:
    return ", ".join(sorted(options))
