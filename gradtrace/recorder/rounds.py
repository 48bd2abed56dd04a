"""What the ranks of a run decide together: each brings its part, rank 0 decides, and all hear the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gradtrace import errors
from gradtrace.errors import GradtraceError, RankLostError, StateError
from gradtrace.ledger.encoding import decode, encode
from gradtrace.recorder.meeting import Meeting

__all__ = ["Rounds"]


class Rounds:
    """Numbered rounds of one kind, which all ranks hold in the same order.

    What fails on one rank fails on all: there, with its own error, and elsewhere with one of that class that
    names the rank. Not safe: two rounds of a kind at once.
    """

    def __init__(self, meeting: Meeting, kind: str) -> None:
        self._meeting, self._kind, self._number = meeting, kind, 0

    def hold(self, bring: Callable[[], Any], decide: Callable[[Sequence[Any]], Any]) -> Any:
        """Hand what `bring` returns on every rank, in the order of ranks, to `decide` on rank 0.

        Both return JSON; what `decide` returns is returned on all ranks.

        Raises:
            RankLostError: a rank did not come.
            GradtraceError: what `bring` on another rank, or `decide`, raised.
        """
        meeting = self._meeting
        if meeting.size == 1:
            return decide([bring()])
        key = f"{self._kind} {self._number}"
        self._number += 1
        if meeting.rank == 0:
            return self._announce(key, lambda: decide(self._collect(key, bring)))
        mine = f"{key} of rank {meeting.rank}"
        try:
            message = encode({"good": bring()})
        except BaseException as error:
            self._tell(mine, error)
            raise
        meeting.publish(mine, message)
        return self._hear(key)

    def follow(self, decide: Callable[[], Any]) -> Any:
        """Return what `decide` returns on rank 0, which waits for nobody here."""
        if self._meeting.size == 1:
            return decide()
        key = f"{self._kind} {self._number}"
        self._number += 1
        return self._announce(key, decide) if self._meeting.rank == 0 else self._hear(key)

    def _collect(self, key: str, bring: Callable[[], Any]) -> list[Any]:
        parts = [bring()]
        for rank in range(1, self._meeting.size):
            theirs = f"{key} of rank {rank}"
            parts.append(_read(self._meeting.receive(theirs)))
            self._meeting.remove(theirs)
        # Who came to this round has heard how the last one ended.
        self._meeting.remove(f"{self._kind} {self._number - 2}")
        return parts

    def _announce(self, key: str, decide: Callable[[], Any]) -> Any:
        try:
            news = decide()
            message = encode({"good": news})
        except BaseException as error:
            self._tell(key, error)
            raise
        self._meeting.publish(key, message)
        return news

    def _tell(self, key: str, error: BaseException) -> None:
        # What went wrong here is what this rank must raise, also where nobody can be told.
        with suppress(GradtraceError):
            self._meeting.publish(key, encode(_told(error, self._meeting.rank)))

    def _hear(self, key: str) -> Any:
        # Rank 0 may itself have waited for another rank before it says so.
        return _read(self._meeting.receive(key, patience=2.0))


def _told(error: BaseException, rank: int) -> dict[str, object]:
    if isinstance(error, GradtraceError):
        return {"error": type(error).__name__, "rank": rank, "message": error.message}
    return {"error": "StateError", "rank": rank, "message": f"{type(error).__name__}: {error}"}


def _read(message: bytes) -> Any:
    told = decode(message)
    if "good" in told:
        return told["good"]
    kind = getattr(errors, told["error"], StateError)
    if told["rank"] == 0 or kind is RankLostError:
        raise kind(told["message"])
    raise kind(f"rank {told['rank']}: {told['message']}")
