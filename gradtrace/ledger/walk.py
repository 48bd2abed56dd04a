"""Totals of accumulators, and the opening balance, side by side, block by block, over many parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

    Parameters that follow each other on disk are read as one run: each chunk once, with one chunk of every
    accumulator in memory. One without a place, spread over ranks or layouts, is read as a whole.

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
    stored = {one: None if one == OPENING else one for one in accumulators}
    fills = {one: sums.filling(first, name) for one, name in stored.items()}
    kinds = {one: sums.summed_dtype(first, name) for one, name in stored.items()}
    memory = {one: np.empty(min(length, size), kind) for one, kind in kinds.items()}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="gradtrace-read") as pool:
        for chunk in range(first.begin // length, -(-run[-1][1].end // length)):
            begin, end = chunk * length, min((chunk + 1) * length, size)
            here = [(name, place) for name, place in run if place.begin < end and begin < place.end]
            if not here:
                continue
            try:
                for _ in pool.map(lambda one: fills[one](chunk, memory[one][: end - begin]), fills):  # noqa: B023
                    pass
            except CorruptLedgerError as error:
                raise CorruptLedgerError(f"parameter {here[0][0]!r}: {error.message}") from error
            for name, place in here:
                for part in _parts(max(place.begin, begin), min(place.end, end)):
                    own = slice(part.start - place.begin, part.stop - place.begin)
                    at = slice(part.start - begin, part.stop - begin)
                    totals = {
                        one: whole[at] if one == OPENING else whole[at].astype(total_dtype(one), copy=False)
                        for one, whole in memory.items()
                    }
                    yield Block(name, own, totals)


def _parts(begin: int, end: int) -> Iterator[slice]:
    """Cut [begin, end) into blocks; one empty block where there is nothing."""
    for first, last in pairwise([*range(begin, max(end, begin + 1), _BLOCK), end]):
        yield slice(first, last)
