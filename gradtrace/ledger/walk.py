"""Totals of accumulators, and the opening balance, side by side, block by block, over many parameters."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from gradtrace.errors import CorruptLedgerError
from gradtrace.ledger.adding import total_dtype
from gradtrace.ledger.array_format import chunk_elements

if TYPE_CHECKING:
    from gradtrace.ledger.record import ParameterRecord
    from gradtrace.ledger.sums import Place, Sums

__all__ = ["OPENING", "Block", "walk"]

# Asked for beside accumulators: the float32 weights with which a parameter's recording began.
OPENING = "opening"

Array: TypeAlias = np.ndarray[Any, Any]

# Elements of a block: that of five accumulators stays in a core's cache until it is used.
_BLOCK = 2**16
# Arrays read at once: with more, a disk jumps between files and cores between sums.
_THREADS = 2


class Block(NamedTuple):
    """The totals of the elements `part` of a parameter, flat, by accumulator; good until the next block.

    Under "opening", where that was asked for, its opening balance.
    """

    name: str
    part: slice
    totals: Mapping[str, Array]


def walk(sums: Sums, records: Iterable[ParameterRecord], accumulators: Sequence[str]) -> Iterator[Block]:
    """Yield the totals of every parameter, in order, in one block or more; float64 or int64, opening float32.

    Parameters that follow each other on disk are read as one run: each chunk once, with a piece of every
    accumulator in memory. What was yielded of a chunk may be relied on once the walk has gone beyond it. One
    without a place, spread over ranks or layouts, is read as a whole.

    Raises:
        CorruptLedgerError: stored data is lost or altered. What was yielded of the chunk is not to be used.
        UnknownNameError: an accumulator was not recorded of a parameter.
    """
    totalled = [one for one in accumulators if one != OPENING]
    run: list[tuple[str, Place]] = []
    for record in records:
        place = record.place
        if place is None or not place.size or not all(map(record.offers, totalled)):
            yield from _run(sums, run, accumulators)
            run = []
            totals = {one: np.asarray(getattr(record, one)).reshape(-1) for one in accumulators}
            for part in _parts(0, record.info.size):
                yield Block(record.name, part, {one: total[part] for one, total in totals.items()})
            continue
        if run and not place.follows(run[-1][1]):
            yield from _run(sums, run, accumulators)
            run = []
        run.append((record.name, place))
    yield from _run(sums, run, accumulators)


def _run(sums: Sums, run: Sequence[tuple[str, Place]], accumulators: Sequence[str]) -> Iterator[Block]:
    if not run:
        return
    first = run[0][1]
    size = sums.rank_size(first)
    length = chunk_elements(size)
    sources = {one: sums.pieces(first, None if one == OPENING else one) for one in accumulators}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="gradtrace-read") as pool:
        for chunk in range(first.begin // length, -(-run[-1][1].end // length)):
            begin, end = chunk * length, min((chunk + 1) * length, size)
            here = [(name, place) for name, place in run if place.begin < end and begin < place.end]
            if not here:
                continue
            try:
                with ExitStack() as stack:
                    streams = [stack.enter_context(closing(pieces(chunk))) for pieces in sources.values()]
                    for one in _side_by_side(pool, streams):
                        yield from _blocks(here, begin, dict(zip(sources, one, strict=True)))
                        begin += one[0].size
            except CorruptLedgerError as error:
                raise CorruptLedgerError(f"parameter {here[0][0]!r}: {error.message}") from error


def _side_by_side(pool: Executor, streams: Sequence[Generator[Array]]) -> Iterator[list[Array]]:
    """The next piece of every stream, read on threads, until all have come to their end."""
    while True:
        reading = [pool.submit(next, stream, None) for stream in streams]
        wait(reading)  # also where one fails: a generator at work cannot be closed
        found = [one for future in reading if (one := future.result()) is not None]
        if not found:
            return
        yield found


def _blocks(run: Sequence[tuple[str, Place]], begin: int, pieces: Mapping[str, Array]) -> Iterator[Block]:
    """The blocks of the parameters that lie in pieces from `begin` on."""
    end = begin + next(iter(pieces.values())).size
    for name, place in run:
        if place.begin >= end or begin >= place.end:
            continue
        for part in _parts(max(place.begin, begin), min(place.end, end)):
            own = slice(part.start - place.begin, part.stop - place.begin)
            at = slice(part.start - begin, part.stop - begin)
            totals = {
                one: piece[at] if one == OPENING else piece[at].astype(total_dtype(one), copy=False)
                for one, piece in pieces.items()
            }
            yield Block(name, own, totals)


def _parts(begin: int, end: int) -> Iterator[slice]:
    """Cut [begin, end) into blocks; one empty block where there is nothing."""
    for first, last in pairwise([*range(begin, max(end, begin + 1), _BLOCK), end]):
        yield slice(first, last)
