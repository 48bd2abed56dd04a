"""Syncing files beside the thread that writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

__all__ = ["BackgroundSync"]


class BackgroundSync:
    """Files on their way to the disk; nothing is durable before `finish` says so.

    A failure is kept for `finish`: the system reports it once, and a later sync of the file would succeed.
    Not safe: calls from several threads at once.

    Args:
        sync: makes a file durable, given its path.
    """

    def __init__(self, sync: Callable[[str], None]) -> None:
        self._sync = sync
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: dict[str, Future[None]] = {}

    def begin(self, path: str) -> None:
        """Start to sync a file that is complete."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="gradtrace-sync")
        self._under_way[path] = self._pool.submit(self._sync, path)

    def finish(self, prefix: str) -> frozenset[str]:
        """Wait for what is at or below `prefix`; return those files, durable now, or raise what failed."""
        taken = self._take(prefix)
        for future in taken.values():
            future.result()
        return frozenset(taken)

    def forget(self, prefix: str) -> None:
        """Wait for what is below `prefix`, which is about to be removed; what failed does not matter."""
        self._take(prefix)

    def _take(self, prefix: str) -> dict[str, Future[None]]:
        taken = {
            path: future
            for path, future in self._under_way.items()
            if path == prefix or path.startswith(os.path.join(prefix, ""))
        }
        wait(taken.values())
        for path in taken:
            del self._under_way[path]
        if not self._under_way and self._pool is not None:
            # No thread is kept between entries.
            self._pool.shutdown()
            self._pool = None
        return taken
