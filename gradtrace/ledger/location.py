"""Which storage a path names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.storage import Storage

__all__ = ["storage_at"]


def storage_at(path: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None) -> Storage:
    """Return the storage at `path`; touches nothing.

    Raises:
        InvalidValueError: `path` or `storage_options` name no place that a ledger can be in.
    """
    if "://" in (os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""):
        raise InvalidValueError("ledger path", expected="a path on a local disk", got="a URL")
    if storage_options:
        raise InvalidValueError(
            "storage_options",
            expected="none for a path on a local disk",
            got=", ".join(map(str, storage_options)),
        )
    return LocalStorage(path)
