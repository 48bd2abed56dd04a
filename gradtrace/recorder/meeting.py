"""Where the ranks of a run leave messages for each other; no collective, so that nobody else is held up."""

from __future__ import annotations

import threading
import zlib
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from gradtrace.errors import RankLostError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

__all__ = ["Alone", "Meeting", "StoreMeeting"]

# How long the others are waited for, in seconds.
PATIENCE = 600.0
# The stores of torch refuse values of more than 8 MiB.
_PART = 4 * 1024 * 1024
_SHORTEST, _LONGEST = 0.001, 0.05


class Meeting(Protocol):
    """One rank's view of a place for messages, each under a key of its own.

    Safe: calls from several threads at once.
    """

    rank: int
    size: int

    def publish(self, key: str, message: bytes) -> None:
        """Leave a message, which must be the first under this key."""

    def receive(self, key: str, *, patience: float = 1.0) -> bytes:
        """Return the message under `key` once it is there; `patience` is in units of the usual waiting time.

        Raises:
            RankLostError: it did not come in time, or what keeps the messages is gone, or `leave` was called.
        """

    def remove(self, key: str) -> None:
        """Take a message away, if it can be; all who need it must have received it."""

    def leave(self) -> None:
        """Wait for nobody any more."""


class Alone(Meeting):
    """The meeting of a single rank: nobody to write to."""

    rank = 0
    size = 1

    def publish(self, key: str, message: bytes) -> None:
        """Nobody reads it."""

    def receive(self, key: str, *, patience: float = 1.0) -> bytes:
        """Nobody wrote it."""
        raise RankLostError(f"message {key}", expected="another rank", got="none")

    def remove(self, key: str) -> None:
        """Nothing is there."""

    def leave(self) -> None:
        """Nobody is waited for."""


class StoreMeeting(Meeting):
    """Messages in the key-value store through which the processes of torch.distributed found each other.

    Args:
        store: the store; prefixed here, with the number of meetings that this rank began in it.
        rank: this rank.
        size: number of ranks.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        # Every rank begins its meetings in the same order; a store outlives none of its processes.
        # Imported here, because torch can be built without it.
        from torch.distributed.distributed_c10d import PrefixStore

        number = store.add(f"gradtrace/meetings/{rank}", 1)
        self._store: Any = PrefixStore(f"gradtrace/{number}", store)
        self._left = threading.Event()

    @override
    def publish(self, key: str, message: bytes) -> None:
        packed = zlib.compress(message, 1)
        parts = [packed[first : first + _PART] for first in range(0, len(packed), _PART)]
        try:
            for number, part in enumerate(parts):
                self._store.set(f"{key}/{number}", part)
            # Last: whoever finds it finds all parts.
            self._store.set(key, str(len(parts)))
        except RuntimeError as error:
            raise _gone(key) from error

    @override
    def receive(self, key: str, *, patience: float = 1.0) -> bytes:
        pause, limit = _SHORTEST, monotonic() + patience * PATIENCE
        try:
            # A blocking get would hold up everybody in this process who needs the store.
            while not self._store.check([key]):
                if self._left.is_set():
                    raise RankLostError(f"{key} is not waited for any more", remedy="an error ended the run")
                if monotonic() > limit:
                    raise RankLostError(
                        f"rank {self.rank} waited {patience * PATIENCE:.0f} s for {key}",
                        expected="all ranks to observe, commit and close at the same steps",
                        got="nothing",
                        remedy="see whether another rank died; what was committed before is kept",
                    )
                sleep(pause)
                pause = min(2 * pause, _LONGEST)
            count = int(self._store.get(key))
            packed = b"".join(self._store.get(f"{key}/{number}") for number in range(count))
        except RuntimeError as error:
            raise _gone(key) from error
        return zlib.decompress(packed)

    @override
    def remove(self, key: str) -> None:
        try:
            if not self._store.check([key]):
                return
            for number in range(int(self._store.get(key))):
                self._store.delete_key(f"{key}/{number}")
            self._store.delete_key(key)
        except RuntimeError:
            # Not every store can delete, and one that is gone keeps nothing.
            return

    @override
    def leave(self) -> None:
        self._left.set()


def _gone(key: str) -> RankLostError:
    return RankLostError(
        f"the store of torch.distributed does not answer ({key})",
        expected="the process that keeps it, usually rank 0, to be there",
        got="no connection",
        remedy="see why that process ended; what was committed before is kept",
    )
