"""Zarr's view of an object store: each write is one PUT by a writer that still holds its lease."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from gradtrace.ledger.object_failure import calling_async

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

__all__ = ["ZarrObjects"]


class ZarrObjects(ObjectStore["Client"]):
    """As zarr's ObjectStore, below a prefix, with failures that quote no server and no multipart uploads.

    With the prefix in the path instead, zarr would write the groups above it, up to the bucket's root. And a
    killed multipart upload stays behind, unseen and paid for.

    Args:
        store: obstore's client of the bucket.
        prefix: what every key begins with; empty or ending in "/".
        where: how messages name the bucket, ending in "/".
        read_only: whether writing is refused.
        confirm: called before each write.
    """

    def __init__(
        self,
        store: Client,
        prefix: str,
        where: str,
        *,
        read_only: bool = False,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(store, read_only=read_only)
        self._prefix, self._where, self._confirm = prefix, where, confirm

    def with_read_only(self, read_only: bool = False) -> ZarrObjects:
        """See zarr's Store."""
        return type(self)(self.store, self._prefix, self._where, read_only=read_only, confirm=self._confirm)

    def __str__(self) -> str:
        return f"{self._where}{self._prefix}"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """See zarr's Store."""
        key = self._prefix + key
        return await calling_async(f"reading {self._where}{key}", super().get(key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        """See zarr's Store."""
        key = self._prefix + key
        return await calling_async(f"looking at {self._where}{key}", super().exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        """See zarr's Store."""
        await self._put(key, value, "overwrite")

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """See zarr's Store."""
        await self._put(key, value, "create")

    async def delete(self, key: str) -> None:
        """See zarr's Store."""
        self._check_writable()
        self._confirm()
        key = self._prefix + key
        await calling_async(f"removing {self._where}{key}", super().delete(key))

    async def delete_dir(self, prefix: str) -> None:
        """See zarr's Store."""
        async for key in self.list_prefix(f"{prefix.rstrip('/')}/" if prefix else ""):
            await self.delete(key)

    async def list(self) -> AsyncGenerator[str, None]:
        """See zarr's Store."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        """See zarr's Store."""
        async for key in self._each(super().list_prefix(self._prefix + prefix)):
            yield key.removeprefix(self._prefix)

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """See zarr's Store."""
        async for name in self._each(super().list_dir(self._prefix + prefix)):
            yield name

    async def _put(self, key: str, value: Buffer, mode: Literal["overwrite", "create"]) -> None:
        import obstore

        self._check_writable()
        self._confirm()
        data, key = value.as_buffer_like(), self._prefix + key

        async def put() -> None:
            with suppress(obstore.exceptions.AlreadyExistsError):
                await obstore.put_async(self.store, key, data, mode=mode, use_multipart=False)

        await calling_async(f"writing {self._where}{key}", put())

    async def _each(self, names: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        while True:
            name = await calling_async(f"listing {self._where}{self._prefix}", anext(names, None))
            if name is None:
                return
            yield name
