"""Who records what: boxes that several ranks hold alike are shared out among them, by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradtrace.ledger.layout import Layout
from gradtrace.ledger.parameter import ParameterInfo
from gradtrace.ledger.piece import Piece

__all__ = ["Box", "shared_out"]


@dataclass(frozen=True)
class Box:
    """The part of a parameter that one rank holds: its first corner in the full tensor, and its sides."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Into how many parts along its first dimension it can be cut; a scalar is one."""
        return self.shape[0] if self.shape else 1

    def between(self, first: int, last: int) -> Box:
        """The box of its rows first to last, without the last."""
        if not self.shape:
            return self
        return Box((self.start[0] + first, *self.start[1:]), (last - first, *self.shape[1:]))


def shared_out(parameters: Sequence[ParameterInfo], held: Sequence[Sequence[Box]]) -> Layout:
    """Return the layout in which every element is recorded once, by a rank that holds it.

    Args:
        parameters: what is recorded.
        held: for every rank, the box that it holds of each parameter; an empty one where it holds nothing.

    Ranks that hold the same box of a parameter share it: it is cut along its first dimension, so that all
    ranks end up with equally many elements, as far as what each alone holds allows, to within one row.

    Raises:
        InvalidValueError: the boxes of a parameter overlap or leave something out.
    """
    loads = [0] * len(held)
    shares: list[list[tuple[int, Box]]] = [[] for _ in held]
    for ranks, items in sorted(_by_holders(parameters, held).items(), key=lambda one: (len(one[0]), one[0])):
        quotas = _levelled([loads[rank] for rank in ranks], sum(box.size for _, box in items))
        for rank, share in zip(ranks, _cut(items, quotas), strict=True):
            shares[rank] += share
            loads[rank] += sum(box.size for _, box in share)
    return Layout(
        tuple(parameters), tuple(_placed(sorted(share, key=lambda one: one[0])) for share in shares)
    )


def _by_holders(
    parameters: Sequence[ParameterInfo], held: Sequence[Sequence[Box]]
) -> dict[tuple[int, ...], list[tuple[int, Box]]]:
    groups: dict[tuple[int, ...], list[tuple[int, Box]]] = {}
    for index, info in enumerate(parameters):
        holders: dict[Box, list[int]] = {}
        for rank, boxes in enumerate(held):
            # A parameter without elements still has steps to count: one rank must see its gradient.
            if boxes[index].size or not info.size:
                holders.setdefault(boxes[index], []).append(rank)
        for box, ranks in holders.items():
            groups.setdefault(tuple(ranks), []).append((index, box))
    return groups


def _levelled(loads: Sequence[int], total: int) -> list[int]:
    """How much of `total` each takes, so that the smallest loads rise to one level."""
    order = sorted(range(len(loads)), key=loads.__getitem__)
    for count in range(len(order), 0, -1):
        level, rest = divmod(total + sum(loads[one] for one in order[:count]), count)
        if level >= loads[order[count - 1]]:
            break
    quotas = [0] * len(loads)
    for place, one in enumerate(order[:count]):
        quotas[one] = level - loads[one] + (place < rest)
    return quotas


def _cut(items: Sequence[tuple[int, Box]], quotas: Sequence[int]) -> list[list[tuple[int, Box]]]:
    """Cut a row of boxes into runs of about these sizes, between rows of the boxes."""
    shares: list[list[tuple[int, Box]]] = [[] for _ in quotas]
    begin = 0
    for index, box in items:
        width = box.size // box.rows if box.rows else 0
        first, quota_end = 0, 0
        for place, quota in enumerate(quotas):
            quota_end += quota
            # The nearest row to where the quota ends; what is left over is the last one's.
            last = (quota_end - begin + width // 2) // width if width else box.rows
            last = box.rows if place == len(quotas) - 1 else min(max(last, first), box.rows)
            if last > first or (not box.size and place == 0):
                shares[place].append((index, box.between(first, last)))
            first = last
        begin += box.size
    return shares


def _placed(share: Sequence[tuple[int, Box]]) -> tuple[Piece, ...]:
    pieces, offset = [], 0
    for index, box in share:
        pieces.append(Piece(index, offset, box.start, box.shape))
        offset += box.size
    return tuple(pieces)
