"""Towards which structure a training anneals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.criterion import criterion

__all__ = ["STRUCTURES", "Target"]

STRUCTURES = ("element", "tile", "rows", "neuron", "blocks")
_UNITS = {"element", "tile", "rows"}


@dataclass(frozen=True)
class Target:
    """What is to be left, and what presses towards it.

    structure: "element", "tile" (16 x 16) and "rows" (64 outputs share one input set) in linear layers,
        "neuron" (whole hidden units of MLPs), "blocks" (`blocks` independent parts of each MLP).
    density: share kept, in (0, 1]; of blocks, that to which they are squeezed, 0.5 / `blocks` unless given.
    by: criterion; None: the default one where there is a ledger, else "magnitude".
    l1: weights of the annealed layers shrink by learning rate * l1 after each step while it anneals; unless
        given 0.01 towards blocks, else 0.
    group_lasso: for blocks: the weights between two blocks-to-be shrink together, the smaller the faster.

    Raises:
        InvalidValueError: what is out of range or does not go together.
    """

    structure: str = "rows"
    density: float | None = None
    blocks: int | None = None
    by: str | None = None
    l1: float | None = None
    group_lasso: float = 0.0

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise InvalidValueError(
                "structure", expected=f"one of {', '.join(STRUCTURES)}", got=repr(self.structure)
            )
        whole = isinstance(self.blocks, int) and not isinstance(self.blocks, bool)
        if self.structure == "blocks" and (not whole or self.blocks < 2):  # type: ignore[operator]
            raise InvalidValueError(
                "blocks",
                expected="an integer of at least 2 for structure='blocks'",
                got=repr(self.blocks),
                remedy="pass e.g. blocks=8",
            )
        if self.structure != "blocks" and self.blocks is not None:
            raise InvalidValueError(
                "blocks", expected="structure='blocks' with it", got=f"structure={self.structure!r}"
            )
        if self.density is None and self.structure != "blocks":
            raise InvalidValueError(
                "density", expected="a number in (0, 1]", got="None", remedy="pass e.g. density=0.3"
            )
        if self.density is not None and not (_is_number(self.density) and 0 < self.density <= 1):
            raise InvalidValueError(
                "density", expected="a number in (0, 1]", got=repr(self.density), remedy="e.g. density=0.3"
            )
        for name in ("l1", "group_lasso"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < math.inf):
                raise InvalidValueError(name, expected="a finite number of at least 0", got=repr(value))
        if self.group_lasso and self.structure != "blocks":
            raise InvalidValueError(
                "group_lasso",
                expected="structure='blocks' with it",
                got=f"structure={self.structure!r}",
                remedy="use l1, which presses towards any structure",
            )
        if self.by is not None:
            criterion(self.by)

    @property
    def final(self) -> float:
        """The density of the last stage."""
        if self.density is not None:
            return self.density
        assert self.blocks is not None
        return 0.5 / self.blocks

    @property
    def shrinkage(self) -> float:
        """`l1`, or what stands for it."""
        if self.l1 is not None:
            return float(self.l1)
        return 0.01 if self.structure == "blocks" else 0.0

    @property
    def of_mlps(self) -> bool:
        """Whether it is the structure of whole MLPs, rather than of single layers."""
        return self.structure not in _UNITS


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
