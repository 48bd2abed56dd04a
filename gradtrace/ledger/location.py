"""Which storage a path names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.storage import Storage

__all__ = ["StorageOptions", "storage_at"]

StorageOptions = Mapping[str, object] | None
_MANGLED = ("s3:/", "gs:/", "az:/", "memory:/")


def storage_at(path: str | os.PathLike[str], storage_options: StorageOptions = None) -> Storage:
    """Return the storage at `path`; touches nothing.

    Args:
        path: a path on a local disk, or s3://bucket/name, gs://bucket/name, az://container/name, or
            memory://name/name for a store in this process.
        storage_options: for an object store, what obstore's S3Store, GCSStore or AzureStore takes; what is
            not given comes from the environment. Never written or shown.

    Raises:
        InvalidValueError: `path` or `storage_options` name no place that a ledger can be in.
        UnsupportedError: obstore is not installed.
    """
    if isinstance(path, str) and "://" in path:
        # Here, because most ledgers lie on a disk, and obstore is an extra.
        from gradtrace.ledger.object_storage import ObjectStorage

        return ObjectStorage(path, {} if storage_options is None else storage_options)
    if isinstance(path, os.PathLike) and os.fspath(path).startswith(_MANGLED):
        raise InvalidValueError(
            "ledger path", expected="a URL as text", got=f"a {type(path).__name__}, which changes URLs"
        )
    if storage_options:
        names = ", ".join(map(str, storage_options))
        raise InvalidValueError("storage_options", expected="none for a path on a local disk", got=names)
    return LocalStorage(path)
