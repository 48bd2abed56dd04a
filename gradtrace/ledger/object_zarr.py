"""Zarr's view of an object store: each write is one PUT by a writer that still holds its lease."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from gradtrace.ledger.object_failure import calling_async

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

__all__ = ["ZarrObjects"]


class ZarrObjects(ObjectStore["Client"]):
    """As zarr's ObjectStore, with failures that quote no server and without multipart uploads.

    A killed multipart upload stays behind, unseen and paid for.
    """

    def __init__(
        self,
        store: Client,
        where: str,
        *,
        read_only: bool = False,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(store, read_only=read_only)
        self._where, self._confirm = where, confirm

    def with_read_only(self, read_only: bool = False) -> ZarrObjects:
        """See zarr's Store."""
        return type(self)(self.store, self._where, read_only=read_only, confirm=self._confirm)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """See zarr's Store."""
        return await calling_async(f"reading {self._where}/{key}", super().get(key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        """See zarr's Store."""
        return await calling_async(f"looking at {self._where}/{key}", super().exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        """See zarr's Store."""
        import obstore

        self._check_writable()
        self._confirm()
        data = value.as_buffer_like()
        await calling_async(
            f"writing {self._where}/{key}", obstore.put_async(self.store, key, data, use_multipart=False)
        )

    async def delete(self, key: str) -> None:
        """See zarr's Store."""
        self._confirm()
        await calling_async(f"removing {self._where}/{key}", super().delete(key))

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """See zarr's Store."""
        names = super().list_dir(prefix)
        while True:
            name = await calling_async(f"listing {self._where}/{prefix}", anext(names, None))
            if name is None:
                return
            yield name
