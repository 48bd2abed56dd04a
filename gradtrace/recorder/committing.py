"""How what the ranks recorded gets into the ledger: each writes its own arrays, rank 0 commits them all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradtrace.errors import (
    CorruptLedgerError,
    MismatchError,
    RankLostError,
    StateError,
    UnsupportedFormatError,
)
from gradtrace.ledger.commit import ArrayDigest
from gradtrace.ledger.format import Layout
from gradtrace.ledger.part import PartWriter
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder.entry import OpenEntry
from gradtrace.recorder.marks import joined
from gradtrace.recorder.meeting import Meeting
from gradtrace.recorder.rounds import Rounds

__all__ = ["Committing", "RankLayout"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankLayout:
    """A layout with its number in the ledger, as one rank sees it."""

    layout: Layout
    number: int
    rank: int

    @property
    def size(self) -> int:
        """Dependencies that this rank records."""
        return self.layout.size(self.rank)

    def counted(self, marked: npt.NDArray[np.bool_]) -> list[int]:
        """How many dependencies of each parameter are marked, among those that this rank records."""
        counts = [0] * len(self.layout.parameters)
        for piece in self.layout.ranks[self.rank]:
            own = marked[piece.offset : piece.offset + piece.size]
            counts[piece.parameter] += int(np.count_nonzero(own))
        return counts


class Committing:
    """Layouts and entries of one recording, committed by rank 0 when all ranks have written their part.

    Safe: `agree` on one thread while another commits.
    """

    def __init__(self, meeting: Meeting, writer: LedgerWriter | None, part: PartWriter) -> None:
        self._meeting, self._part = meeting, part
        self._writer = writer  # on rank 0
        self._generation = 0  # of the next entry; a voided attempt raises it
        self._doubtful = False  # alike on all ranks: whether a merge failed, and may have left something
        self._writing = Rounds(meeting, "the end of a write")
        self._agreeing = Rounds(meeting, "a decision of rank 0")
        self._merging = Rounds(meeting, "a merge")
        self._clearing = Rounds(meeting, "what is left after a failure")
        self._parting = Rounds(meeting, "the end")
        self._merges = True

    def agree(self, decide: Callable[[], bool]) -> bool:
        """Return on all ranks what `decide` says on rank 0."""
        return bool(self._agreeing.follow(decide))

    def begin(self, own: RankLayout, opening: npt.NDArray[np.float32]) -> None:
        """Write the layout and, flat, the weights with which it begins."""
        if self._meeting.size == 1:
            assert self._writer is not None
            self._writer.add_layout(own.layout, [opening])
            return
        self._clear_up()

        def bring() -> Any:
            return self._part.write_opening(own.number, opening).to_json()

        def decide(parts: Sequence[Any]) -> None:
            assert self._writer is not None
            self._writer.join_layout(own.layout, [ArrayDigest.from_json(part) for part in parts])

        self._writing.hold(bring, decide)

    def commit(
        self,
        entry: OpenEntry,
        own: RankLayout,
        tallies: Mapping[str, int],
        supported: npt.NDArray[np.bool_],
    ) -> list[int]:
        """Commit the entry and return, over all ranks, how many dependencies of each parameter had an event.

        Args:
            entry: this rank's part of it.
            own: the layout that it follows.
            tallies: what went wrong on the way, by its name in the details: `passed_cuts`, `failed_commits`.
            supported: flat, which of this rank's dependencies have had an event, also in this entry.
        """
        if tallies["failed_commits"]:
            self._clear_up(entry.begin)
        elif self._doubtful:
            self._clear_up()
        generation = self._generation

        def bring() -> dict[str, Any]:
            part: dict[str, Any] = {
                "span": [entry.begin, entry.end, entry.windows, *entry.sampling.to_json().values()],
                "marks": entry.marks,
                "supported": own.counted(supported),
            }
            if self._meeting.size > 1:
                digests = self._part.write_entry(entry.begin, entry.end, generation, entry.arrays)
                part["digests"] = {name: digest.to_json() for name, digest in digests.items()}
            return part

        def decide(parts: Sequence[Any]) -> list[int]:
            assert self._writer is not None
            _check_spans([part["span"] for part in parts])
            marks = joined([part["marks"] for part in parts], len(own.layout.parameters))
            details = entry.details(marks) | {name: count for name, count in tallies.items() if count}
            if entry.follows_checkpoint:
                details["follows_checkpoint"] = True
            if self._meeting.size == 1:
                self._writer.commit_entry(
                    entry.begin,
                    entry.end,
                    layout=own.number,
                    windows=entry.windows,
                    arrays=entry.arrays,
                    details=details,
                    sampling=entry.sampling,
                )
            else:
                self._writer.commit_parts(
                    entry.begin,
                    entry.end,
                    layout=own.number,
                    windows=entry.windows,
                    parts=[_digests(part["digests"]) for part in parts],
                    details=details,
                    sampling=entry.sampling,
                )
            return [sum(counts) for counts in zip(*(part["supported"] for part in parts), strict=True)]

        counts: list[int] = self._writing.hold(bring, decide)
        return counts

    def merge(self) -> None:
        """Join older entries, on rank 0; the others wait, so that nobody writes beside it.

        Entries that cannot be joined stay as they are: a warning says so, and nothing more is merged.
        """
        self._doubtful = True  # until all have heard that it went well
        self._doubtful = not self._merging.hold(lambda: None, lambda _: self._merge())

    def _merge(self) -> bool:
        assert self._writer is not None
        if not self._merges:
            return True
        try:
            self._writer.merge()
        except (CorruptLedgerError, StateError, UnsupportedFormatError) as error:
            self._merges = False
            _log.warning("entries of the ledger are not merged any more: %s", error)
        return self._merges

    def _clear_up(self, begin: int | None = None) -> None:
        """Remove what failed attempts left, also entries from `begin` on, before any rank writes again."""

        def decide() -> int:
            assert self._writer is not None
            # Later the writer would take what the other ranks have just written for remains.
            self._writer.settle()
            if begin is not None:
                # A commit may have landed although its writer heard of a failure; it is part of this entry.
                self._writer.void(begin)
            return self._writer.generation

        self._generation = self._clearing.follow(decide)
        self._doubtful = False

    def part(self) -> None:
        """Wait until all ranks have heard of the last commit."""
        # Rank 0 may keep the messages, and take them along when it exits. Who is late here loses nothing.
        with suppress(RankLostError):
            self._parting.hold(lambda: None, lambda _: None)

    def leave(self) -> None:
        """Wait for no rank any more."""
        self._meeting.leave()

    def release(self) -> None:
        """Release the ledger for the next writer."""
        if self._writer is not None:
            self._writer.close()


def _digests(part: dict[str, Any]) -> dict[str, ArrayDigest]:
    return {name: ArrayDigest.from_json(digest) for name, digest in part.items()}


def _check_spans(spans: Sequence[Sequence[int]]) -> None:
    for rank, span in enumerate(spans):
        if list(span) != list(spans[0]):
            raise MismatchError(
                f"rank {rank} commits another entry than rank 0",
                expected="steps {}-{} in {} windows".format(*spans[0]),
                got="steps {}-{} in {} windows".format(*span),
                remedy="observe and commit at the same steps on every rank",
            )
