"""Objects under keys in a bucket: every write is one PUT, atomic and durable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from zarr.abc.store import Store

from gradtrace.ledger.array_format import ROOT
from gradtrace.ledger.lease import Lease
from gradtrace.ledger.lock import LEASE, WriterLock
from gradtrace.ledger.object_client import longest_call, make_client
from gradtrace.ledger.object_failure import calling
from gradtrace.ledger.object_url import ObjectURL
from gradtrace.ledger.object_zarr import ZarrObjects
from gradtrace.ledger.storage import Storage, segments_of
from gradtrace.ledger.versioned_object import VersionedObject

__all__ = ["ObjectStorage"]

_T = TypeVar("_T")


class ObjectStorage(Storage):
    """A bucket, or what lies below a prefix in it, as a store of objects.

    Once it was locked, it begins no write and no removal without its lease: a writer that was taken over can
    commit nothing.

    Args:
        url: s3://, gs:// or az:// with bucket and prefix; memory:// for one in this process, by name.
        storage_options: see `make_client`; never shown.
    """

    def __init__(self, url: str, storage_options: Mapping[str, object]) -> None:
        self._url = ObjectURL.parse(url)
        self._client = make_client(self._url, storage_options)
        self._longest_call = longest_call(storage_options)
        self._lease: Lease | None = None

    @property
    def location(self) -> str:
        """The URL."""
        return str(self._url)

    def at(self, key: str) -> str:
        """The URL of an object."""
        return f"{self._url}/{key}"

    def get(self, key: str) -> bytes | None:
        """See Storage."""

        def read(path: str) -> bytes | None:
            try:
                return bytes(self._client.get(path).bytes())
            except FileNotFoundError:
                return None

        return self._calling("reading", key, read)

    def names(self, prefix: str) -> list[str]:
        """See Storage."""

        def listed(path: str) -> list[str]:
            found = self._client.list_with_delimiter(path)
            objects: list[str] = [one["path"] for one in found["objects"]]
            return [*found["common_prefixes"], *objects]

        paths = self._calling("listing", prefix, listed)
        return sorted({path.rpartition("/")[2] for path in paths})

    def put(self, key: str, data: bytes) -> None:
        """See Storage."""
        self._confirm(now=True)
        self._put(key, data)

    def write(self, key: str, *parts: bytes | memoryview) -> None:
        """See Storage."""
        self._confirm()
        self._put(key, b"".join(parts))

    def zarr_store(self, prefix: str, *, read_only: bool = False) -> Store:
        """See Storage."""
        where, path = f"{self._url.scheme}://{self._url.bucket}/", self._path(prefix)
        root = f"{path}/" if path else ""
        return ZarrObjects(self._client, root, where, read_only=read_only, confirm=self._confirm)

    def delete_prefix(self, prefix: str) -> None:
        """See Storage."""
        self._confirm()

        def remove(path: str) -> None:
            below = [one["path"] for batch in self._client.list(path) for one in batch]
            for one in ([below] if below else []) + [[path]]:
                try:
                    self._client.delete(one)
                except FileNotFoundError:
                    continue

        self._calling("removing", prefix, remove)

    def sync(self, prefix: str) -> None:
        """Nothing is left to do: a PUT is durable when it returns."""
        segments_of(prefix)

    def exists(self) -> bool:
        """See Storage."""
        return bool(self.names(""))

    def is_folder(self) -> bool:
        """See Storage."""
        return True

    def is_link(self) -> bool:
        """See Storage."""
        return False

    @contextmanager
    def making(self) -> Iterator[None]:
        """Nothing needs to be made."""
        yield

    def lock(self) -> WriterLock:
        """See Storage."""
        place = VersionedObject(self._client, self._path(LEASE), self.at(LEASE))
        self._lease = Lease(place, self.location, longest_call=self._longest_call, clock=self._path(ROOT))
        return self._lease

    def _confirm(self, *, now: bool = False) -> None:
        if self._lease is not None:
            self._lease.confirm(now=now)

    def _put(self, key: str, data: bytes) -> None:
        self._calling("writing", key, lambda path: self._client.put(path, data, use_multipart=False))

    def _calling(self, doing: str, key: str, call: Callable[[str], _T]) -> _T:
        path = self._path(key)
        return calling(f"{doing} {self.at(key)}", lambda: call(path))

    def _path(self, key: str) -> str:
        return "/".join([*([self._url.prefix] if self._url.prefix else []), *segments_of(key)])
