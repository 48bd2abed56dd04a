"""One object that is replaced only by whoever knows its present version."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from gradtrace.errors import UnsupportedError
from gradtrace.ledger.object_failure import calling

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

__all__ = ["Found", "Version", "VersionedObject"]

Version = Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """An object's bytes, its version, and when it was written by the server's clock."""

    data: bytes
    version: Version
    written: datetime


class VersionedObject:
    """The object `key` of a bucket, written with If-None-Match and If-Match.

    Args:
        client: obstore's client of the bucket.
        key: the object's key.
        where: how messages name it.
    """

    def __init__(self, client: ObjectStore, key: str, where: str) -> None:
        self._client, self._key, self._where = client, key, where

    def read(self) -> Found | None:
        """Return the object, or None where there is none."""

        def get() -> Found | None:
            try:
                answer = self._client.get(self._key)
            except FileNotFoundError:
                return None
            return Found(bytes(answer.bytes()), _version(answer.meta), answer.meta["last_modified"])

        return calling(f"reading {self._where}", get)

    def put(self, data: bytes, version: Version | None) -> Version | None:
        """Replace `version`, or create the object where that is None; return what is there now.

        None means that another version is there, which may be these very bytes: an answer can get lost, and
        then the request is made again.

        Raises:
            UnsupportedError: the store does not know conditional writes.
        """
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        mode = cast("PutMode", "create" if version is None else dict(version))

        def put() -> Version | type[UnsupportedError] | None:
            try:
                return _version(self._client.put(self._key, data, mode=mode, use_multipart=False))
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                # A bucket that is not there is told apart by the reading that follows.
                return None
            except (NotSupportedError, NotImplementedError):
                return UnsupportedError

        answer = calling(f"writing {self._where}", put)
        if answer is UnsupportedError:
            raise UnsupportedError(
                f"the store of {self._where} knows no conditional writes",
                expected="one that can keep two writers apart",
                remedy="record on a local disk and copy the ledger afterwards",
            )
        return cast("Version | None", answer)

    def now(self, key: str) -> datetime:
        """Return the time by the server's clock, learnt by writing the object `key` and removing it."""
        probe = f"{key}.{uuid.uuid4().hex}.partial"

        def ask() -> datetime:
            self._client.put(probe, b"", use_multipart=False)
            try:
                return self._client.head(probe)["last_modified"]
            finally:
                self._client.delete(probe)

        return calling(f"asking the time of {self._where}", ask)


def _version(meta: Mapping[str, Any]) -> Version:
    # obstore gives None for what a store does not have, but takes only what is there.
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
