"""Which part of its steps an entry's sums were taken from."""

from __future__ import annotations

from dataclasses import dataclass

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.encoding import JSON, integer

__all__ = ["ALL_STEPS", "Sampling"]

_WIDEST = 32767


@dataclass(frozen=True)
class Sampling:
    """Sums were taken on `steps` steps, each drawn with probability 1 / stride and weighted by the stride.

    So grad_sum, grad_sumsq and votes are unbiased for the sums over all steps. `events` are no sums: they are
    counted at every step. `stride` is None where entries of different strides were joined.

    Raises:
        InvalidValueError: a number is out of range.
    """

    stride: int | None
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", integer(self.steps, "sampled"))
        if self.stride is not None:
            object.__setattr__(self, "stride", integer(self.stride, "stride", least=1, most=_WIDEST))

    def check(self, steps: int) -> None:
        """Raise an InvalidValueError unless an entry of so many steps can be sampled like this."""
        if self.steps > steps or (self.stride == 1 and self.steps != steps):
            expected = f"{'' if self.stride == 1 else 'at most '}{steps} at stride {self.stride}"
            raise InvalidValueError("sampled", expected=expected, got=str(self.steps))

    def __add__(self, other: Sampling) -> Sampling:
        return Sampling(self.stride if self.stride == other.stride else None, self.steps + other.steps)

    def to_json(self) -> dict[str, JSON]:
        """Return the members `stride` and `sampled` of a commit."""
        return {"stride": self.stride, "sampled": self.steps}


ALL_STEPS = Sampling(1, 0)
"""Stands for an entry's own number of steps, whatever that is."""
