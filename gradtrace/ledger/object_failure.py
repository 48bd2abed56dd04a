"""What an object store's failure may say: never the server's own words, which quote URLs and headers."""

from __future__ import annotations

import errno
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gradtrace.errors import GradtraceError, StorageError

__all__ = ["calling", "calling_async", "failed"]

_T = TypeVar("_T")
_STATUS = re.compile(r"status code: ([1-5][0-9]{2})\b")
_CODE = re.compile(r"<Code>([A-Za-z]{1,40})</Code>")


def calling(what: str, call: Callable[[], _T]) -> _T:
    """Return `call()`; its failure is a StorageError, in whose chain the server's words are not either."""
    # Raised outside of every except: an exception's context is printed too.
    try:
        return call()
    except GradtraceError:
        raise
    except Exception as error:
        failure = failed(what, error)
    raise failure


async def calling_async(what: str, call: Awaitable[_T]) -> _T:
    """As `calling`, for what is awaited."""
    try:
        return await call
    except GradtraceError:
        raise
    except Exception as error:
        failure = failed(what, error)
    raise failure


def failed(what: str, error: Exception) -> StorageError:
    """Return the StorageError of an obstore failure: what was being done, and why as far as that is safe."""
    number, reason, remedy = _reason(type(error).__name__, str(error))
    failure = StorageError(f"{what} failed: {reason}", remedy=remedy)
    failure.errno = number
    return failure


def _reason(kind: str, text: str) -> tuple[int, str, str]:
    status, code = _STATUS.search(text), _CODE.search(text)
    answer = f"the server answered {status[1]}" if status else "the server refused"
    answer += f" ({code[1]})" if code else ""
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        remedy = "check the credentials in storage_options= or the environment, and what they allow"
        return errno.EACCES, answer, remedy
    if kind in ("NotSupportedError", "NotImplementedError"):
        return errno.ENOTSUP, "the store cannot do that", ""
    if kind == "FileNotFoundError":
        return errno.ENOENT, answer if status else "it is not there", "check that the bucket is there"
    if status:
        return errno.EIO, answer, ""
    if "kind: Timeout" in text or "TimedOut" in text:
        return errno.ETIMEDOUT, "the server did not answer in time", ""
    if "BadScheme" in text:
        return errno.EACCES, "it is no https:// server", "set AWS_ALLOW_HTTP=true if plain http is meant"
    if "error sending request" in text or "kind: Connect" in text:
        return errno.ECONNREFUSED, "the server cannot be reached", ""
    if "crede" in text.lower() or "token" in text.lower():
        return errno.EACCES, "no usable credentials", "pass them in storage_options= or the environment"
    return errno.EIO, kind, ""
