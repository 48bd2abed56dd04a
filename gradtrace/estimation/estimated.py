"""An estimate: what is to be expected at each density, on what assumptions, and which of them to take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

__all__ = ["Estimate", "Level", "Range"]

Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Level:
    """What a conversion at one density is expected to give.

    Attributes:
        density: share of each linear layer's dependencies that the mask keeps.
        removed: share of all linear layers' weights that would no longer be run; layers that stay dense
            keep theirs.
        converted: how many layers would be decomposed.
        quality: what `validate` says of the model with these weights zeroed; None where it was not asked.
        quality_range: 95% interval for other examples like those, or None.
        seconds: a call; seconds_range: within the error that predictions are known to have.
        bytes: of all parameters, and of the indices that sub-operators need.
        saved: a year, or None without traffic; saved_range: at both ends of `seconds_range`.
    """

    density: float
    removed: float
    converted: int
    quality: float | None
    quality_range: Range | None
    seconds: float
    seconds_range: Range
    bytes: int
    saved: float | None
    saved_range: Range | None


@dataclass(frozen=True)
class Estimate:
    """`dense` is the model as it is, `levels` the densities asked for, from the highest on.

    `best` is the fastest level whose quality is within `max_loss`, relative to dense, if that is known and
    there is one that is faster than dense.
    """

    dense: Level
    levels: tuple[Level, ...]
    max_loss: float
    assumptions: tuple[str, ...]

    @property
    def best(self) -> Level | None:
        """The level to take, or None."""
        asked = self.dense.quality
        if asked is None:
            return None
        least = asked - self.max_loss * abs(asked)
        good = [one for one in self.levels if one.quality is not None and one.quality >= least]
        fastest = min(good, key=lambda one: one.seconds, default=None)
        return fastest if fastest is not None and fastest.seconds < self.dense.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self) | {"best": None if self.best is None else asdict(self.best)}
