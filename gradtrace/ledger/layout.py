"""Where each box of each parameter lies in the flat arrays of each rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import JSON, field, integer
from gradtrace.ledger.parameter import ParameterInfo

__all__ = ["Layout", "Piece"]


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


@dataclass(frozen=True)
class Layout:
    """Which parameters are recorded, and where each rank keeps its boxes of them.

    The boxes of a parameter tile it exactly. The pieces of a rank stand in ascending order of offset without
    overlap; gaps between them (alignment) are allowed and never read.

    Raises:
        InvalidValueError: the pieces do not fit their parameters, or names clash.
    """

    parameters: tuple[ParameterInfo, ...]
    ranks: tuple[tuple[Piece, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "ranks", tuple(tuple(pieces) for pieces in self.ranks))
        if not self.parameters:
            raise InvalidValueError("layout", expected="at least one parameter", got="none")
        if not 1 <= len(self.ranks) <= 10_000:
            raise InvalidValueError("layout", expected="1 to 10,000 ranks", got=str(len(self.ranks)))
        _check_names(self.parameters)
        for rank, pieces in enumerate(self.ranks):
            _check_order(rank, pieces)
        boxes: dict[int, list[Piece]] = {index: [] for index in range(len(self.parameters))}
        for piece in (piece for pieces in self.ranks for piece in pieces):
            if piece.parameter not in boxes:
                raise InvalidValueError(
                    "piece's parameter", expected=f"below {len(boxes)}", got=str(piece.parameter)
                )
            boxes[piece.parameter].append(piece)
        for index, own in boxes.items():
            _check_tiling(self.parameters[index], own)

    def size(self, rank: int) -> int:
        """Return the length of the flat arrays of `rank`."""
        return max((piece.offset + piece.size for piece in self.ranks[rank]), default=0)

    def pieces(self, parameter: int) -> tuple[tuple[int, Piece], ...]:
        """Return (rank, piece) for every box of the parameter at this index."""
        return tuple(
            (rank, piece)
            for rank, pieces in enumerate(self.ranks)
            for piece in pieces
            if piece.parameter == parameter
        )

    @classmethod
    def whole(cls, parameters: Iterable[ParameterInfo]) -> Layout:
        """Return the layout in which one rank records everything, in order and without gaps."""
        parameters = tuple(parameters)
        pieces, offset = [], 0
        for index, info in enumerate(parameters):
            pieces.append(Piece(index, offset, (0,) * len(info.shape), info.shape))
            offset += info.size
        return cls(parameters, (tuple(pieces),))

    def to_json(self) -> Mapping[str, JSON]:
        """Return the members `parameters` and `ranks` of layout.json."""
        return {
            "parameters": [info.to_json() for info in self.parameters],
            "ranks": [
                [
                    {
                        "parameter": piece.parameter,
                        "offset": piece.offset,
                        "start": list(piece.start),
                        "shape": list(piece.shape),
                    }
                    for piece in pieces
                ]
                for pieces in self.ranks
            ],
        }

    @classmethod
    def from_json(cls, data: object) -> Layout:
        """Read the members `parameters` and `ranks` of layout.json; raises InvalidValueError."""
        ranks: list[object] = field(data, "ranks", list)
        if not all(isinstance(pieces, list) for pieces in ranks):
            raise InvalidValueError("field 'ranks'", expected="a list of lists", got=repr(ranks)[:80])
        return cls(
            tuple(ParameterInfo.from_json(info) for info in field(data, "parameters", list)),
            tuple(
                tuple(
                    Piece(
                        field(piece, "parameter", int),
                        field(piece, "offset", int),
                        tuple(field(piece, "start", list)),
                        tuple(field(piece, "shape", list)),
                    )
                    for piece in pieces
                )
                for pieces in ranks
                if isinstance(pieces, list)
            ),
        )


def _check_names(parameters: Sequence[ParameterInfo]) -> None:
    seen: set[str] = set()
    for name in (name for info in parameters for name in (info.name, *info.aliases)):
        if name in seen:
            raise InvalidValueError("parameter names", expected="each once", got=f"{name!r} twice")
        seen.add(name)


def _check_order(rank: int, pieces: Sequence[Piece]) -> None:
    end = 0
    for piece in pieces:
        if piece.offset < end:
            raise InvalidValueError(
                f"offset on rank {rank}",
                expected=f"at least {end}, after the piece before",
                got=str(piece.offset),
            )
        end = integer(piece.offset + piece.size, f"end of a piece on rank {rank}")


def _check_tiling(info: ParameterInfo, pieces: Sequence[Piece]) -> None:
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
