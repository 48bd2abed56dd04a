"""One box of one parameter in a rank's flat arrays, and how boxes must fit together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import integer
from gradtrace.ledger.parameter import ParameterInfo

__all__ = ["Piece", "check_order", "check_tiling"]


@dataclass(frozen=True)
class Piece:
    """A box of one parameter, flat in C order from `offset` on.

    Attributes:
        parameter: index in the layout's parameters.
        offset: first element in the rank's flat arrays.
        start: first corner of the box in the full tensor.
        shape: sides of the box.
    """

    parameter: int
    offset: int
    start: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameter", integer(self.parameter, "piece's parameter"))
        object.__setattr__(self, "offset", integer(self.offset, "piece's offset"))
        object.__setattr__(self, "start", tuple(integer(side, "piece's start") for side in self.start))
        object.__setattr__(self, "shape", tuple(integer(side, "piece's shape") for side in self.shape))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def box(self) -> tuple[slice, ...]:
        """The slices that cut this piece out of the full tensor."""
        return tuple(slice(first, first + side) for first, side in zip(self.start, self.shape, strict=True))


def check_order(rank: int, pieces: Sequence[Piece]) -> None:
    """Refuse pieces of one rank that do not stand in ascending order without overlap."""
    end = 0
    for piece in pieces:
        if piece.offset < end:
            raise InvalidValueError(
                f"offset on rank {rank}",
                expected=f"at least {end}, after the piece before",
                got=str(piece.offset),
            )
        end = integer(piece.offset + piece.size, f"end of a piece on rank {rank}")


def check_tiling(info: ParameterInfo, pieces: Sequence[Piece]) -> None:
    """Refuse boxes of one parameter, over all ranks, that do not cover each of its elements once."""
    for piece in pieces:
        if len(piece.start) != len(info.shape) or len(piece.shape) != len(info.shape):
            raise InvalidValueError(
                f"piece of {info.name!r}", expected=f"{len(info.shape)} dimensions", got=str(len(piece.shape))
            )
        if any(
            first + side > whole
            for first, side, whole in zip(piece.start, piece.shape, info.shape, strict=True)
        ):
            raise InvalidValueError(
                f"piece of {info.name!r}",
                expected=f"inside {info.shape}",
                got=f"{piece.start} + {piece.shape}",
            )
    filled = [piece for piece in pieces if piece.size]
    covered = sum(piece.size for piece in filled)
    if covered != info.size or _overlapping(filled):
        raise InvalidValueError(
            f"pieces of {info.name!r}",
            expected=f"boxes that cover its {info.size} elements once",
            got=f"{covered} elements" + (", some of them twice" if covered >= info.size else ""),
        )


def _overlapping(pieces: Sequence[Piece]) -> bool:
    if len(pieces) > 1 and not pieces[0].shape:
        return True
    # Sorted along the first dimension, a box only meets those that begin before it ends: fast for shards.
    ordered = sorted(pieces, key=lambda piece: piece.start)
    for position, piece in enumerate(ordered):
        for other in ordered[position + 1 :]:
            if other.start[0] >= piece.start[0] + piece.shape[0]:
                break
            if all(
                a < b + other_side and b < a + side
                for a, side, b, other_side in zip(
                    piece.start, piece.shape, other.start, other.shape, strict=True
                )
            ):
                return True
    return False
