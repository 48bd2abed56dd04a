"""What annealing came to: the mask, and every trial on the way to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradtrace.evidence.mask import Mask

__all__ = ["Annealed", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One mask that was validated: the share kept of each weight, and the loss increase that it brought.

    `stage` counts from 1, `allowed` is the increase that the stage may reach, and `fits` says whether it is
    within it.
    """

    stage: int
    allowed: float
    densities: Mapping[str, float]
    increase: float
    fits: bool


@dataclass(frozen=True, eq=False)
class Annealed:
    """The sparsest mask within the budget, with the dense loss, its own increase, and how it was come by."""

    mask: Mask
    dense: float
    increase: float
    history: tuple[Trial, ...]

    @property
    def densities(self) -> dict[str, float]:
        """Parameter name -> share kept."""
        return {name: float(kept.mean()) for name, kept in self.mask.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the mask itself."""
        return {
            "density": self.mask.density,
            "densities": self.densities,
            "dense": self.dense,
            "increase": self.increase,
            "history": [
                vars(trial) | {"densities": dict(trial.densities), "increase": _finite(trial.increase)}
                for trial in self.history
            ],
        }

    def __repr__(self) -> str:
        return (
            f"<Annealed: density {self.mask.density:.4g}, loss {self.increase:+.4g} from {self.dense:.4g}, "
            f"{len(self.history)} trials>"
        )


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
