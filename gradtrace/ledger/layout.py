"""Where each box of each parameter lies in the flat arrays of each rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import JSON, field, integer
from gradtrace.ledger.inputs import INPUT_MOMENTS, InputInfo
from gradtrace.ledger.parameter import ParameterInfo
from gradtrace.ledger.piece import Piece, check_order, check_tiling

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Which parameters are recorded, and where each rank keeps its boxes of them.

    The boxes of a parameter tile it exactly. The pieces of a rank stand in ascending order of offset without
    overlap; gaps between them (alignment) are allowed and never read. `inputs` are the modules whose input
    moments are recorded; those lie one after the other in arrays of their own.

    Raises:
        InvalidValueError: the pieces do not fit their parameters, or names clash.
    """

    parameters: tuple[ParameterInfo, ...]
    ranks: tuple[tuple[Piece, ...], ...]
    inputs: tuple[InputInfo, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "ranks", tuple(tuple(pieces) for pieces in self.ranks))
        if not self.parameters:
            raise InvalidValueError("layout", expected="at least one parameter", got="none")
        if not 1 <= len(self.ranks) <= 10_000:
            raise InvalidValueError("layout", expected="1 to 10,000 ranks", got=str(len(self.ranks)))
        object.__setattr__(self, "inputs", tuple(self.inputs))
        _check_names(self.parameters)
        if len({info.module for info in self.inputs}) < len(self.inputs):
            raise InvalidValueError("modules of the inputs", expected="each once", got="one twice")
        integer(self.size(0, "input_gram"), "size of the Gram matrices")
        for rank, pieces in enumerate(self.ranks):
            check_order(rank, pieces)
        for info, places in zip(self.parameters, self._places, strict=True):
            check_tiling(info, [piece for _, piece in places])

    def size(self, rank: int, accumulator: str | None = None) -> int:
        """Return the length of the flat arrays of `rank`; rank 0 alone has the moments of inputs."""
        if accumulator is not None and accumulator in INPUT_MOMENTS:
            return 0 if rank else sum(info.length(accumulator) for info in self.inputs)
        return max((piece.offset + piece.size for piece in self.ranks[rank]), default=0)

    def input_range(self, index: int, accumulator: str) -> tuple[int, int]:
        """Return (offset, length) of the moments of the inputs at this index, on rank 0."""
        before = sum(info.length(accumulator) for info in self.inputs[:index])
        return before, self.inputs[index].length(accumulator)

    def pieces(self, parameter: int) -> tuple[tuple[int, Piece], ...]:
        """Return (rank, piece) for every box of the parameter at this index."""
        return self._places[parameter]

    @cached_property
    def _places(self) -> tuple[tuple[tuple[int, Piece], ...], ...]:
        places: list[list[tuple[int, Piece]]] = [[] for _ in self.parameters]
        for rank, pieces in enumerate(self.ranks):
            for piece in pieces:
                if piece.parameter >= len(places):
                    raise InvalidValueError(
                        "piece's parameter", expected=f"below {len(places)}", got=str(piece.parameter)
                    )
                places[piece.parameter].append((rank, piece))
        return tuple(tuple(own) for own in places)

    @classmethod
    def whole(cls, parameters: Iterable[ParameterInfo], inputs: Iterable[InputInfo] = ()) -> Layout:
        """Return the layout in which one rank records everything, in order and without gaps."""
        parameters = tuple(parameters)
        pieces, offset = [], 0
        for index, info in enumerate(parameters):
            pieces.append(Piece(index, offset, (0,) * len(info.shape), info.shape))
            offset += info.size
        return cls(parameters, (tuple(pieces),), tuple(inputs))

    def to_json(self) -> Mapping[str, JSON]:
        """Return the members `parameters`, `ranks` and, where there are any, `inputs` of layout.json."""
        inputs: dict[str, JSON] = {"inputs": [info.to_json() for info in self.inputs]} if self.inputs else {}
        return inputs | {
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
        """Read what `to_json` returned; raises InvalidValueError."""
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
            tuple(
                InputInfo.from_json(info)
                for info in (
                    field(data, "inputs", list) if isinstance(data, Mapping) and "inputs" in data else ()
                )
            ),
        )


def _check_names(parameters: Sequence[ParameterInfo]) -> None:
    seen: set[str] = set()
    for name in (name for info in parameters for name in (info.name, *info.aliases)):
        if name in seen:
            raise InvalidValueError("parameter names", expected="each once", got=f"{name!r} twice")
        seen.add(name)
